use std::fs;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::*;

const A: Uuid = Uuid::from_u128(0xa);
const B: Uuid = Uuid::from_u128(0xb);

fn record(block: u64, blocks: u64, build: Uuid, storage: u64) -> Record {
    Record { offset: block * 4096, length: blocks * 4096, build, storage_offset: storage * 4096 }
}

fn header(records: Vec<Record>) -> Header {
    let size = records.last().unwrap().end();
    Header { block_size: 4096, size, generation: 1, build: B, base_build: A, records }
}

/// Two builds: block n of A is filled with n + 1, of B with n + 101.
fn snapshot(records: Vec<Record>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("memfile.header"), header(records).to_bytes()).unwrap();
    for (build, first) in [(A, 1u8), (B, 101)] {
        let bytes: Vec<u8> = (0..8u8).flat_map(|n| [first + n; 4096]).collect();
        fs::write(directory::diff_path(dir.path(), build), bytes).unwrap();
    }
    dir
}

#[test]
fn an_extent_is_the_maximal_run_that_holds_the_offset() {
    let nil = Uuid::nil();
    // Blocks 0 and 1 lie together in A although an older writer gave them two records; 2 and 3 are zeros twice.
    let dir = snapshot(vec![
        record(0, 1, A, 2),
        record(1, 1, A, 3),
        record(2, 1, nil, 0),
        record(3, 1, nil, 9),
        record(4, 2, B, 0),
        record(6, 1, B, 5),
    ]);
    let image = Image::open(dir.path()).unwrap();
    assert_eq!((image.size(), image.block_size()), (7 * 4096, 4096));
    let shape = |extent: Extent<'_>| {
        let first = match extent.content {
            Content::Zero => 0,
            Content::Data(bytes) => {
                assert_eq!(bytes.len() as u64, extent.length);
                bytes[0]
            }
        };
        (extent.offset / 4096, extent.length / 4096, first)
    };
    let expected = [(0, 2, 3), (2, 2, 0), (4, 2, 101), (6, 1, 106)];
    assert_eq!(image.extents().map(shape).collect::<Vec<_>>(), expected);
    for (offset, index) in [(0, 0), (8191, 0), (8192, 1), (4 * 4096, 2), (7 * 4096 - 1, 3)] {
        assert_eq!(shape(image.extent_at(offset)), expected[index]);
        assert_eq!(image.next_extent(offset).map(shape), expected.get(index + 1).copied());
    }
    let pieces: Vec<_> = image.pieces(4096, 5 * 4096).map(shape).collect();
    assert_eq!(pieces, [(1, 1, 4), (2, 2, 0), (4, 1, 101)]);
}

#[test]
fn a_diff_file_that_is_missing_or_short_is_found_when_the_image_is_opened() {
    let dir = snapshot(vec![record(0, 1, A, 7), record(1, 1, B, 0)]);
    let a = directory::diff_path(dir.path(), A);
    fs::File::options().write(true).open(&a).unwrap().set_len(8 * 4096 - 1).unwrap();
    let short = Image::open(dir.path()).unwrap_err();
    assert!(matches!(short, Error::DiffShort { bytes: 32767, wanted: 32768, .. }), "{short}");
    fs::remove_file(&a).unwrap();
    let missing = Image::open(dir.path()).unwrap_err();
    assert!(matches!(&missing, Error::DiffMissing { path, .. } if *path == a), "{missing}");
}

#[test]
fn the_plain_memfile_of_old_snapshots_stands_for_their_only_build() {
    let dir = snapshot(vec![record(0, 2, B, 0)]);
    let named = directory::diff_path(dir.path(), B);
    fs::rename(&named, dir.path().join("memfile")).unwrap();
    let image = Image::open(dir.path()).unwrap();
    assert!(matches!(image.extent_at(0).content, Content::Data(bytes) if bytes[0] == 101));
    // With two builds nobody knows whose it is.
    fs::write(
        dir.path().join("memfile.header"),
        header(vec![record(0, 1, A, 0), record(1, 1, B, 0)]).to_bytes(),
    )
    .unwrap();
    assert!(matches!(Image::open(dir.path()), Err(Error::DiffMissing { path, .. }) if path == named));
}

#[test]
fn a_raw_file_is_its_data_and_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    let file = fs::File::create(&path).unwrap();
    file.set_len(64 * 4096).unwrap();
    file.write_all_at(&[7; 8192], 4096).unwrap();
    file.write_all_at(&[9; 4096], 40 * 4096).unwrap();
    let image = Image::open_raw(&path).unwrap();
    let shape: Vec<_> =
        image.extents().map(|e| (e.offset / 4096, e.length / 4096, e.content != Content::Zero)).collect();
    assert_eq!(
        shape,
        [(0, 1, false), (1, 2, true), (3, 37, false), (40, 1, true), (41, 23, false)],
        "this test needs a file system that reports holes in pages"
    );
    file.set_len(4097).unwrap();
    assert!(matches!(Image::open_raw(&path), Err(Error::Field { field: "raw", .. })));
}

#[test]
fn a_run_is_checked_piece_by_piece_and_a_changed_byte_is_found_where_it_is() {
    let nil = Uuid::nil();
    let dir =
        snapshot(vec![record(0, 2, A, 2), record(2, 1, nil, 0), record(3, 3, B, 0), record(6, 1, A, 6)]);
    let header = directory::read_header(dir.path()).unwrap();
    // A's checksums cover its blocks 1 to 2, 3 and 6; B has none.
    let bytes = fs::read(directory::diff_path(dir.path(), A)).unwrap();
    let sums = [1..3_u64, 3..4, 6..7].map(|blocks| {
        let range = blocks.start * 4096..blocks.end * 4096;
        crate::sums::Sum::of(range.clone(), &bytes[range.start as usize..range.end as usize])
    });
    let records = [Record { offset: 0, length: 8 * 4096, build: A, storage_offset: 0 }];
    let mut undo = wire::Undo::default();
    let sums = Sums::in_storage(sums.to_vec(), &records, A);
    crate::sums::write(dir.path(), A, &sums, &mut undo).unwrap();
    undo.commit();
    let blocks = |checked: Checked| {
        let Range { start, end } = *checked.range();
        (matches!(checked, Checked::Good(_)), matches!(checked, Checked::Wrong(_)), start / 4096, end / 4096)
    };
    let all = |image: &Image| -> Vec<_> {
        let mut at = 0;
        std::iter::from_fn(|| {
            let checked = (at < image.size()).then(|| image.check_run(at, &mut Vec::new()))?;
            at = checked.range().end;
            Some(blocks(checked))
        })
        .collect()
    };
    let (good, unknown, wrong) = ((true, false), (false, false), (false, true));
    let expect = |first: (bool, bool)| {
        [(first, 0, 1), (good, 1, 2), (unknown, 2, 3), (unknown, 3, 6), (good, 6, 7)]
            .map(|((a, b), c, d)| (a, b, c, d))
    };
    assert_eq!(
        all(&Image::with_header(dir.path(), &header).unwrap())[0],
        (false, false, 0, 2),
        "not asked for"
    );
    assert_eq!(all(&Image::open_checked(dir.path()).unwrap()), expect(good));
    // Block 1 of the file is under the same checksum as block 2.
    let file = File::options().write(true).open(directory::diff_path(dir.path(), A)).unwrap();
    file.write_all_at(&[0], 4096 + 7).unwrap();
    assert_eq!(all(&Image::open_checked(dir.path()).unwrap()), expect(wrong));
    fs::write(crate::sums::path(dir.path(), A), "something else").unwrap();
    assert!(matches!(Image::open_checked(dir.path()), Err(Error::Sums { .. })));
}
