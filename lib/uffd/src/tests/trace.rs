use std::io::Read;

use proptest::prelude::*;

use super::*;

const HEADER_OF: Header = Header {
    size: 1 << 40,
    page_size: 4096,
    connected: Duration::from_nanos(1_700_000_000_123_456_789),
    pid: 77,
};

const ONE: Record = Record {
    at: Duration::ZERO,
    offset: 0,
    length: 4096,
    latency: Duration::ZERO,
    kind: Kind::Image,
    write: false,
};

fn written(records: impl IntoIterator<Item = Record>) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = Writer::new(Writer::create(file.path()).unwrap(), HEADER_OF);
    records.into_iter().for_each(|record| writer.push(record));
    drop(writer);
    let mut bytes = Vec::new();
    file.reopen().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn any_record() -> impl Strategy<Value = Record> {
    (any::<u64>(), 0u64..1 << 30, 0u64..1 << 30, any::<u32>(), 0usize..9, any::<bool>()).prop_map(
        |(at, offset, length, latency, kind, write)| Record {
            at: Duration::from_nanos(at),
            offset,
            length,
            latency: Duration::from_nanos(latency.into()),
            kind: Kind::ALL[kind],
            write,
        },
    )
}

#[test]
fn the_bytes_are_those_of_the_documented_format() {
    let record = Record {
        at: Duration::from_nanos(0x0102),
        offset: 0x3000,
        length: 0x1000,
        latency: Duration::from_nanos(0x0a0b),
        kind: Kind::Refill,
        write: true,
    };
    let bytes = written([record]);
    assert_eq!(&bytes[..16], b"wrenn-pf\x01\0\0\0\x20\0\0\0");
    assert_eq!(bytes[16..24], (1u64 << 40).to_le_bytes());
    assert_eq!(bytes[24..32], 4096u64.to_le_bytes());
    assert_eq!(bytes[32..40], 1_700_000_000_123_456_789u64.to_le_bytes());
    assert_eq!((&bytes[40..44], &bytes[44..64]), (&[77, 0, 0, 0][..], &[0; 20][..]));
    assert_eq!(
        bytes[64..],
        [
            [2, 1, 0, 0, 0, 0, 0, 0],
            [0, 0x30, 0, 0, 0, 0, 0, 0],
            [0, 0x10, 0, 0, 0, 0, 0, 0],
            [0x0b, 0x0a, 0, 0, 3, 1, 0, 0],
        ]
        .concat()
    );
}

#[test]
fn every_kind_keeps_its_number_and_those_that_somebody_waited_for_are_counted_apart() {
    let numbered = |kind: Kind| (kind as u8, kind.word(), kind.is_fault());
    assert_eq!(
        Kind::ALL.map(numbered),
        [
            (1, "image", true),
            (2, "zero", true),
            (3, "refill", true),
            (4, "exists", true),
            (5, "unmapped", true),
            (6, "replay", false),
            (7, "prefetch", false),
            (8, "remove", false),
            (9, "poison", true),
            (255, "full", false),
        ]
    );
    // The state has a word for each of them.
    assert!(Kind::ALL.iter().all(|kind| !kind.is_fault() || (*kind as usize) < 32));
}

#[test]
fn a_full_file_says_so_and_grows_no_more() {
    let all = |count: u64| written((0..count).map(|at| Record { at: Duration::from_nanos(at), ..ONE }));
    let bytes = all(MOST + 10);
    assert_eq!(bytes.len() as u64, HEADER as u64 + MOST * RECORD as u64);
    let trace = Trace::parse(&bytes).unwrap();
    assert!(trace.full);
    assert_eq!(
        (trace.records.len() as u64, trace.records.last().unwrap().at.as_nanos() as u64),
        (MOST - 1, MOST - 2)
    );
    let trace = Trace::parse(&all(MOST - 1)).unwrap();
    assert_eq!((trace.records.len() as u64, trace.full), (MOST - 1, false));
}

#[test]
fn what_is_no_trace_is_refused_with_the_reason() {
    let good = written([ONE]);
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, reason) in [
        (good[..63].to_vec(), "63 bytes are no header"),
        (with(0, b'W'), "does not begin as a trace does"),
        (with(8, 2), "version 2 with records of 32 bytes"),
        (with(12, 40), "records of 40 bytes"),
        (with(25, 0x11), "in pages of 4352"),
        (with(64 + 28, 0), "record 0 is of kind 0"),
        (with(64 + 29, 2), "record 0 has bits set"),
        (with(64 + 30, 1), "record 0 has bits set"),
        (with(64 + 15, 1), "record 0 reaches past the end of memory"),
        ([with(64 + 28, 255), good[64..].to_vec()].concat(), "record 0 ends the file, and is not the last"),
    ] {
        let fault = Trace::parse(&bytes).unwrap_err().to_string();
        assert!(fault.contains(reason), "{fault}");
    }
    assert_eq!(
        Trace::parse(&good[..good.len() - 1]).unwrap().records,
        [],
        "a record cut short does not count"
    );
}

proptest! {
    #[test]
    fn what_is_written_is_read(records in prop::collection::vec(any_record(), 0..5000)) {
        let bytes = written(records.clone());
        prop_assert_eq!(Trace::parse(&bytes).unwrap(), Trace { header: HEADER_OF, records, full: false });
    }

    #[test]
    fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), good in any::<bool>()) {
        if good {
            let head = HEADER_OF.to_bytes();
            let shared = bytes.len().min(HEADER);
            bytes[..shared].copy_from_slice(&head[..shared]);
        }
        let _ = Trace::parse(&bytes);
    }
}
