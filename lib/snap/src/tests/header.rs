use super::*;
use proptest::prelude::*;

const A: Uuid = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
const B: Uuid = Uuid::from_u128(0xfedc_ba98_7654_3210_0123_4567_89ab_cdef);

/// Written by hand from the description of the format.
#[rustfmt::skip]
const GOLDEN: &[u8] = &[
    1, 0, 0, 0, 0, 0, 0, 0,                                  // version 1
    0, 0x10, 0, 0, 0, 0, 0, 0,                               // block_size 4096
    0, 0x50, 0, 0, 0, 0, 0, 0,                               // size 5 blocks
    3, 0, 0, 0, 0, 0, 0, 0,                                  // generation 3
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
    0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
    // [0, 0x2000) from build A at 0x1000
    0, 0, 0, 0, 0, 0, 0, 0,   0, 0x20, 0, 0, 0, 0, 0, 0,
    0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
    0, 0x10, 0, 0, 0, 0, 0, 0,
    // [0x2000, 0x4000) zeros
    0, 0x20, 0, 0, 0, 0, 0, 0,   0, 0x20, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
    // [0x4000, 0x5000) from build B at 0
    0, 0x40, 0, 0, 0, 0, 0, 0,   0, 0x10, 0, 0, 0, 0, 0, 0,
    0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
    0, 0, 0, 0, 0, 0, 0, 0,
];

fn golden() -> Header {
    Header {
        block_size: 4096,
        size: 0x5000,
        generation: 3,
        build: A,
        base_build: B,
        records: vec![
            Record { offset: 0, length: 0x2000, build: A, storage_offset: 0x1000 },
            Record { offset: 0x2000, length: 0x2000, build: Uuid::nil(), storage_offset: 0 },
            Record { offset: 0x4000, length: 0x1000, build: B, storage_offset: 0 },
        ],
    }
}

#[test]
fn the_bytes_are_those_of_the_format() {
    assert_eq!(Header::parse(GOLDEN), Ok(golden()));
    assert_eq!(golden().to_bytes(), GOLDEN);
    assert_eq!(golden().build.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
}

#[test]
fn a_header_cut_anywhere_is_refused() {
    for length in 0..GOLDEN.len() {
        let fault = Header::parse(&GOLDEN[..length]).expect_err("cut");
        match (length, &fault) {
            (..64, HeaderFault::Truncated(bytes)) => assert_eq!(*bytes, length),
            (64.., HeaderFault::RecordTruncated(bytes)) => assert_eq!(*bytes, (length - 64) % 40),
            (64.., HeaderFault::Cover { size: 0x5000, .. }) => assert_eq!((length - 64) % 40, 0),
            _ => panic!("cut at {length}: {fault}"),
        }
    }
}

#[test]
fn every_fault_is_named() {
    let with = |change: fn(&mut Header)| {
        let mut header = golden();
        change(&mut header);
        Header::examine(&header.to_bytes()).1
    };
    assert_eq!(with(|h| h.block_size = 8192), [HeaderFault::BlockSize(8192)]);
    assert_eq!(
        with(|h| h.size = 0),
        [HeaderFault::Size { size: 0, block_size: 4096 }, HeaderFault::Cover { end: 0x5000, size: 0 }]
    );
    assert_eq!(with(|h| h.size = 0x6000), [HeaderFault::Cover { end: 0x5000, size: 0x6000 }]);
    assert_eq!(
        with(|h| h.records[1].offset = 0x1000),
        [
            HeaderFault::Order { index: 1, offset: 0x1000, expected: 0x2000 },
            HeaderFault::Order { index: 2, offset: 0x4000, expected: 0x3000 },
        ]
    );
    assert_eq!(
        with(|h| h.records[2].storage_offset = u64::MAX),
        [HeaderFault::Length { index: 2, length: 0x1000, storage_offset: u64::MAX }]
    );
    assert_eq!(
        with(|h| h.records[2].length = 100)[0],
        HeaderFault::Length { index: 2, length: 100, storage_offset: 0 }
    );
    let mut other = GOLDEN.to_vec();
    other[0] = 2;
    assert_eq!(Header::parse(&other), Err(HeaderFault::Version(2)));
}

#[test]
fn records_merge_only_when_their_storage_is_adjacent_too() {
    let block = |n: u64, build, storage: u64| Record {
        offset: n * 4096,
        length: 4096,
        build,
        storage_offset: storage * 4096,
    };
    let mut records = Vec::new();
    for record in [
        block(0, A, 7),
        block(1, A, 8),
        block(2, A, 4),
        block(3, B, 5),
        block(4, Uuid::nil(), 0),
        block(5, Uuid::nil(), 0),
    ] {
        push(&mut records, record);
    }
    let shape: Vec<_> = records.iter().map(|r| (r.offset / 4096, r.length / 4096)).collect();
    assert_eq!(shape, [(0, 2), (2, 1), (3, 1), (4, 2)]);
}

#[test]
fn a_range_is_clipped_in_memory_and_in_storage() {
    let header = golden();
    let pieces: Vec<_> =
        header.range(0x1000, 0x5000).map(|r| (r.offset, r.length, r.storage_offset)).collect();
    assert_eq!(pieces, [(0x1000, 0x1000, 0x2000), (0x2000, 0x2000, 0), (0x4000, 0x1000, 0)]);
    assert_eq!(header.range(0x1000, 0x1000).count(), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Header::parse(&bytes);
        let mut headed = GOLDEN[..64].to_vec();
        headed.extend(bytes);
        let _ = Header::parse(&headed);
    }

    #[test]
    fn a_changed_byte_is_refused_or_read_back_as_written(at in 0..GOLDEN.len(), byte: u8) {
        let mut bytes = GOLDEN.to_vec();
        bytes[at] = byte;
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert_eq!(header.to_bytes(), bytes);
        }
    }
}
