use std::io::Write;

use super::*;

#[test]
fn regions_make_one_memory_in_their_order() {
    let regions = Regions { pid: 1, regions: vec![(0x7000, 0x3000), (0x1000, 0x2000), (0x9_0000, 0x1000)] };
    assert_eq!(regions.size().unwrap(), 0x6000);
    let parts = |start, length| -> Vec<_> {
        regions.parts(start, length).into_iter().map(|part| (part.base, part.len)).collect()
    };
    assert_eq!(parts(0, 0x6000), [(0x7000, 0x3000), (0x1000, 0x2000), (0x9_0000, 0x1000)]);
    assert_eq!(parts(0x2800, 0x1000), [(0x9800, 0x800), (0x1000, 0x800)]);
    assert_eq!(parts(0x5000, 0x1000), [(0x9_0000, 0x1000)]);
    for wrong in [vec![(u64::MAX, 2)], vec![(0, u64::MAX), (0, 1)]] {
        assert!(matches!(Regions { pid: 1, regions: wrong }.size(), Err(Error::Field { .. })));
    }
}

#[test]
fn a_process_is_read_across_its_regions_and_what_it_has_not_is_an_error() {
    // This very process: two buffers, the second first.
    let (one, two) = (vec![1_u8; 8192], vec![2_u8; 4096]);
    let address = |bytes: &[u8]| bytes.as_ptr() as u64;
    let own = std::process::id() as i32;
    let raw = Raw::Process(Regions { pid: own, regions: vec![(address(&two), 4096), (address(&one), 8192)] });
    let input = Input::open(&raw, None).unwrap();
    assert_eq!(input.size(), Some(3 * 4096));
    let mut buffer = vec![9; 8192];
    input.read(2048, &mut buffer).unwrap();
    assert!(buffer[..2048].iter().all(|byte| *byte == 2) && buffer[2048..].iter().all(|byte| *byte == 1));
    input.check().unwrap();

    let raw = Raw::Process(Regions { pid: own, regions: vec![(address(&one), 4096), (4096, 4096)] });
    let error = Input::open(&raw, None).unwrap().read(0, &mut buffer).unwrap_err();
    assert!(error.to_string().contains("no readable memory at 0x1000"), "{error}");
}

#[test]
fn a_pipe_is_read_as_it_comes_to_its_end() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let raw = Raw::Pipe(reader.into());
    let input = Input::open(&raw, None).unwrap();
    let Input::Pipe { pipe, .. } = &input else { panic!("{input:?}") };
    let thread = std::thread::spawn(move || {
        for n in 0..100_u8 {
            writer.write_all(&[n; 100]).unwrap();
        }
    });
    let mut buffer = vec![0; 8000];
    assert_eq!(read_pipe(pipe, &mut buffer).unwrap(), 8000);
    assert!(buffer.chunks(100).zip(0..).all(|(chunk, n)| chunk == [n; 100]));
    assert_eq!(read_pipe(pipe, &mut buffer).unwrap(), 2000);
    assert_eq!(read_pipe(pipe, &mut buffer).unwrap(), 0);
    thread.join().unwrap();
}
