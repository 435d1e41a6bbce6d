use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

fn names(dir: &Path) -> Vec<String> {
    crate::directory::names(dir).unwrap()
}

fn read(path: &Path) -> String {
    let mut text = String::new();
    File::open(path).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_file_appears_whole_under_a_free_name_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("file");
    drop(Partial::create(&target).unwrap());
    assert_eq!(names(dir.path()), [""; 0]);

    let mut undo = Undo::default();
    write_new(&target, b"one", &mut undo).unwrap();
    assert_eq!(read(&target), "one");
    let taken = write_new(&target, b"two", &mut undo).unwrap_err();
    assert!(matches!(taken, Error::Exists { path } if path == target));
    assert_eq!((read(&target).as_str(), names(dir.path()).len()), ("one", 1));
    assert!(undo.run().is_empty());
    assert_eq!(names(dir.path()), [""; 0]);
}

#[test]
fn a_replaced_file_comes_back_when_undone_and_goes_when_kept() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("file");
    let replace = |undo: &mut Undo| {
        let partial = Partial::create(&target).unwrap();
        (&partial.file).write_all(b"new").unwrap();
        partial.replace(undo).unwrap();
        assert_eq!(read(&target), "new");
    };
    let mut undo = Undo::default();
    replace(&mut undo);
    assert!(undo.run().is_empty());
    assert_eq!(names(dir.path()), [""; 0], "there was none before");

    fs::write(&target, "old").unwrap();
    replace(&mut undo);
    assert!(undo.run().is_empty());
    assert_eq!((read(&target).as_str(), names(dir.path()).len()), ("old", 1));

    replace(&mut undo);
    undo.commit();
    assert_eq!((read(&target).as_str(), names(dir.path()).len()), ("new", 1));
}

#[test]
fn what_waits_for_the_commit_is_forgotten_when_undone() {
    let count = Arc::new(AtomicU32::new(0));
    let wait = |undo: &mut Undo| {
        let count = count.clone();
        at_commit("test", undo, move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
    };
    let mut undo = Undo::default();
    wait(&mut undo);
    assert!(undo.run().is_empty());
    wait(&mut undo);
    drop(undo);
    assert_eq!(count.load(Ordering::Relaxed), 0);
    let mut undo = Undo::default();
    wait(&mut undo);
    undo.commit();
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

#[test]
fn a_file_comes_along_as_a_link_and_a_copy_keeps_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (from, link, copy) = (dir.path().join("from"), dir.path().join("link"), dir.path().join("copy"));
    let file = File::create(&from).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"here", 32 << 20).unwrap();
    let mut undo = Undo::default();
    carry(&from, &link, &mut undo).unwrap();
    carry(&from, &link, &mut undo).expect("a second time is no conflict");
    assert!(crate::spans::same_file(&from, &link));
    copy_new(&from, &copy, &mut undo).unwrap();
    assert!(!crate::spans::same_file(&from, &copy));
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < 1 << 20);
    assert!(fs::read(&copy).unwrap() == fs::read(&from).unwrap());
    fs::write(dir.path().join("other"), "").unwrap();
    assert!(matches!(carry(&from, &dir.path().join("other"), &mut undo), Err(Error::Exists { .. })));
    assert!(undo.run().is_empty());
    assert_eq!(names(dir.path()), ["from", "other"]);
}
