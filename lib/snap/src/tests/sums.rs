use super::*;

#[test]
fn the_bytes_are_those_of_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let build = Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    // CRC-32 of "123456789", the check value of its definition.
    let sums = [Sum { range: 4096..4105, crc: 0xcbf4_3926 }];
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
    assert_eq!(parse(&expected, build), Some(sums.to_vec()));
    assert_eq!(parse(&expected[..47], build), None);
    assert_eq!(parse(&expected, Uuid::from_u128(1)), None);

    let diff = |bytes: &[u8]| {
        let path = dir.path().join("diff");
        fs::write(&path, [&[0; 4096], bytes].concat()).unwrap();
        let diff = directory::Diff { build, file: File::open(&path).unwrap(), path };
        compare(dir.path(), &diff).unwrap()
    };
    let good = diff(b"123456789");
    assert_eq!((good.bytes, good.faults.len()), (9, 0));
    for wrong in [b"123456788".as_slice(), b"1234"] {
        let faults = diff(wrong).faults;
        assert!(faults.len() == 1 && faults[0].contains("bytes 4096 to 4105"), "{faults:?}");
    }
}
