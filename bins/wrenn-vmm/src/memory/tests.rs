//! Memory against a model of it: bytes in a vector, and which pages were written.

mod model;
mod served;

use super::*;
use std::os::unix::fs::FileExt;
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

/// The file's bytes over `base`, as whoever reads a Diff does: a hole is what was there.
fn apply(path: &Path, base: &mut [u8]) {
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), base.len() as u64);
    for range in sys::sparse::data(&file) {
        let range = range.unwrap();
        file.read_exact_at(&mut base[range.start as usize..range.end as usize], range.start).unwrap();
    }
}

fn pages(numbers: &[u64], bytes: u64) -> Vec<Vec<u64>> {
    let mut words = vec![0; (bytes / PAGE / 64) as usize];
    for page in numbers {
        words[(page / 64) as usize] |= 1u64 << (page % 64);
    }
    vec![words]
}

#[test]
fn a_range_that_is_not_all_memory_or_not_whole_pages_is_not_discarded() {
    let ram = Ram::fresh(MIB).unwrap();
    ram.memory().write_slice(&[7; 4096], GuestAddress(MIB - PAGE)).unwrap();
    let discard = ram.discard();
    for (address, bytes) in
        [(MIB - PAGE, 2 * PAGE), (MIB, PAGE), (1, PAGE), (0, 100), (0, 0), (u64::MAX - 4095, PAGE)]
    {
        let error = discard.discard(address, bytes).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{address:#x} {bytes}");
    }
    assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(MIB - 1)).unwrap(), 7);
}

#[test]
fn a_full_over_an_older_file_makes_zeros_of_what_became_zero() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    std::fs::write(&path, vec![0xee; MIB as usize]).unwrap();
    let mut ram = Ram::fresh(MIB).unwrap();
    ram.memory().write_slice(&[7; 100], GuestAddress(5 * PAGE)).unwrap();
    ram.note_written(None);
    let dumped = ram.dump(Kind::Full, &path).unwrap();
    assert_eq!(dumped.bytes, PAGE);
    let mut expected = vec![0; MIB as usize];
    expected[5 * 4096..][..100].fill(7);
    assert!(std::fs::read(&path).unwrap() == expected);
}

#[test]
fn a_diff_is_merged_into_a_file_of_the_same_size_and_replaces_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    for (older, expected) in [(MIB, 0xee), (2 * MIB, 0)] {
        std::fs::write(&path, vec![0xee; older as usize]).unwrap();
        let mut ram = Ram::fresh(MIB).unwrap();
        ram.memory().write_slice(&[7; 4096], GuestAddress(PAGE)).unwrap();
        ram.note_written(Some(&pages(&[3], MIB)));
        assert_eq!(ram.dump(Kind::Diff, &path).unwrap().bytes, 2 * PAGE);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, MIB);
        let byte = |page: usize| bytes[page * 4096];
        assert_eq!([byte(0), byte(1), byte(2), byte(3)], [expected, 7, expected, 0]);
    }
}

#[test]
fn a_dump_that_cannot_be_written_says_which_file_and_the_errno() {
    let ram = Ram::fresh(MIB).unwrap();
    let path = Path::new("/nonexistent/memory");
    let error = ram.dump(Kind::Full, path).unwrap_err().to_string();
    assert_eq!(
        error,
        "Cannot write memory file: /nonexistent/memory: No such file or directory (os error 2)"
    );
    // A page of data never fits into this device.
    ram.memory().write_slice(&[7; 100], GuestAddress(0)).unwrap();
    let error = ram.dump(Kind::Full, Path::new("/dev/full")).unwrap_err().to_string();
    assert!(error.contains("Cannot write memory file: /dev/full"), "{error}");
}

#[test]
fn a_memory_file_of_another_size_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let refused = |path: &Path| Ram::of_file(2 * MIB, path).err().expect("it is refused").to_string();
    assert!(refused(&path).contains("No such file"), "{}", refused(&path));
    for found in [0, MIB, 2 * MIB - 1, 3 * MIB] {
        File::create(&path).unwrap().set_len(found).unwrap();
        let expected = format!(
            "The memory file {} has {found} bytes, the snapshot's memory {}",
            path.display(),
            2 * MIB
        );
        assert_eq!(refused(&path), expected);
    }
}

#[test]
fn memory_past_the_hole_follows_the_memory_below_it_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let bytes = (3 << 30) + MIB;
    let mut ram = Ram::fresh(bytes).unwrap();
    ram.memory().write_slice(&[7; 4096], GuestAddress(4 << 30)).unwrap();
    ram.memory().write_slice(&[8; 4096], GuestAddress((3 << 30) - PAGE)).unwrap();
    ram.note_written(Some(&[vec![0; (3 << 30) / 4096 / 64], vec![0b10, 0, 0, 0]]));
    for kind in [Kind::Diff, Kind::Full] {
        let _ = std::fs::remove_file(&path);
        ram.dump(kind, &path).unwrap();
        let file = File::open(&path).unwrap();
        let mut found = [0; 8192];
        file.read_exact_at(&mut found, (3 << 30) - PAGE).unwrap();
        assert_eq!((found[0], found[4095], found[4096], found[8191]), (8, 8, 7, 7), "{kind:?}");
        assert!(file.metadata().unwrap().len() == bytes);
    }
    drop(ram);
    let ram = Ram::of_file(bytes, &path).unwrap();
    assert_eq!(ram.memory().read_obj::<u8>(GuestAddress(4 << 30)).unwrap(), 7);
}
