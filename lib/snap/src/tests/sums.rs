use super::*;

#[test]
fn the_bytes_are_those_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let build = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    // CRC-32 of "123456789", the check value of its definition.
    let sums = Sums(vec![Sum { range: 4096..4105, crc: 0xcbf4_3926 }]);
    let mut undo = Undo::default();
    write(dir.path(), build, &sums, &mut undo).unwrap();
    undo.commit();
    #[rustfmt::skip]
    let expected = [
        1, 0, 0, 0, 0, 0, 0, 0,
        0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        0, 0x10, 0, 0, 0, 0, 0, 0,   9, 0, 0, 0, 0, 0, 0, 0,   0x26, 0x39, 0xf4, 0xcb,   0, 0, 0, 0,
    ];
    assert_eq!(fs::read(path(dir.path(), build)).unwrap(), expected);
    assert_eq!(Sums::parse(&expected, build), Some(sums));
    assert_eq!(Sums::parse(&expected[..47], build), None);
    assert_eq!(Sums::parse(&expected, Uuid::from_u128(1)), None);

    let records = [Record { offset: 0, length: 9, build, storage_offset: 4096 }];
    let diff = |bytes: &[u8]| {
        let path = dir.path().join("diff");
        fs::write(&path, [&[0; 4096], bytes].concat()).unwrap();
        let diff = directory::Diff { build, file: File::open(&path).unwrap(), path };
        compare(dir.path(), &diff, &records, &wire::Progress::bytes("testing", None)).unwrap()
    };
    let good = diff(b"123456789");
    assert_eq!((good.bytes, good.faults.len()), (9, 0));
    for wrong in [b"123456788".as_slice(), b"1234"] {
        let faults = diff(wrong).faults;
        assert!(faults.len() == 1 && faults[0].contains("bytes 4096 to 4105"), "{faults:?}");
    }
}

#[test]
fn what_overlaps_is_out_of_order_or_has_a_length_no_writer_makes_is_no_file_of_checksums() {
    let build = Uuid::from_u128(1);
    let file = |ranges: &[(u64, u64)]| {
        let sums = ranges.iter().map(|(start, length)| Sum { range: *start..start + length, crc: 7 });
        Sums(sums.collect()).to_bytes(build)
    };
    assert!(Sums::parse(&file(&[(0, 4096), (4096, 8192), (1 << 40, 2 << 20)]), build).is_some());
    for wrong in
        [&[(0, 4096), (4095, 4096)][..], &[(8192, 4096), (0, 4096)], &[(0, 0)], &[(0, (2 << 20) + 1)]]
    {
        assert_eq!(Sums::parse(&file(wrong), build), None, "{wrong:?}");
    }
    let mut bytes = file(&[(0, 4096)]);
    *bytes.last_mut().unwrap() = 1;
    assert_eq!(Sums::parse(&bytes, build), None, "the last four bytes are zero");
}

#[test]
fn the_checksum_that_covers_a_byte_is_found_and_so_is_what_none_covers() {
    let sum = |range: Range<u64>| Sum { crc: range.start as u32, range };
    let sums = Sums(vec![sum(10..20), sum(20..30), sum(50..60)]);
    let covering = |at| sums.covering(at).map(|sum| sum.range.clone());
    assert_eq!(
        [9, 10, 19, 20, 30, 50, 60].map(covering),
        [None, Some(10..20), Some(10..20), Some(20..30), None, Some(50..60), None]
    );
    let uncovered = |range| sums.uncovered(range).iter().map(|gap| (gap.start, gap.end)).collect::<Vec<_>>();
    assert_eq!(uncovered(0..100), [(0, 10), (30, 50), (60, 100)]);
    assert_eq!(uncovered(12..28), []);
    assert_eq!(uncovered(31..40), [(31, 40)]);
}
