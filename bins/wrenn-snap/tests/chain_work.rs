//! Work on chains that are there: what they become, and that a kill at any moment leaves one of the two.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Bench, PAGE, names};
use wrenn_tests::json;

/// Five generations: page n of 40 is written in every generation that divides it, page 39 is zeros.
fn five(bench: &Bench) -> Vec<u8> {
    let mut pages = vec![1; 40];
    pages[39] = 0;
    bench.full("raw", &pages);
    bench.done("pack raw=@raw dir=@gen-1 kind=full");
    for generation in 2..=5_usize {
        let writes: Vec<_> =
            (1..39).filter(|page| page % generation == 0).map(|page| (page, generation as u8)).collect();
        writes.iter().for_each(|(page, value)| pages[*page] = *value);
        bench.diff("raw", 40, &writes);
        bench.done(&format!("pack raw=@raw dir=@gen-{generation} kind=diff parent=@gen-{}", generation - 1));
    }
    pages
}

fn builds(bench: &Bench, dir: &str) -> Vec<String> {
    names(&bench.path(dir)).into_iter().filter(|name| name.len() == 44).collect()
}

#[test]
fn a_chain_is_merged_down_to_a_generation_and_shares_the_older_ones() {
    let bench = Bench::new();
    let pages = five(&bench);
    let reply = bench.done("merge dir=@gen-5 out=@out down_to:=2");
    assert_eq!(reply["generation"], 2);
    assert_eq!((bench.memory("out") == pages, builds(&bench, "out").len()), (true, 3));
    let base = format!("memfile.{}", bench.done("inspect dir=@gen-1")["build"].as_str().unwrap());
    let inode = |dir: &str| fs::metadata(bench.path(dir).join(&base)).unwrap().ino();
    assert_eq!(inode("gen-1"), inode("out"), "the base is the same file");
    assert_eq!(bench.done("inspect dir=@out")["base_build"], bench.done("inspect dir=@gen-1")["build"]);

    assert_eq!(bench.done("merge dir=@gen-5 down_to:=1")["generation"], 1);
    assert!(bench.memory("gen-5") == pages && builds(&bench, "gen-5").len() == 2);
    let before = names(&bench.path("gen-5"));
    assert_eq!(bench.done("merge dir=@gen-5 down_to:=3")["generation"], 1, "it is short enough");
    assert_eq!(names(&bench.path("gen-5")), before);
    bench.done("verify dir=@gen-5");
    assert!(bench.memory("gen-4").len() == 40, "the one before it is whole");
}

#[test]
fn a_rebased_image_shares_what_is_the_same_and_stands_on_the_other_lineage() {
    let bench = Bench::new();
    let pages = five(&bench);
    // A lineage of its own with the same memory, but for two pages.
    let mut other = pages.clone();
    (other[3], other[5]) = (99, 0);
    bench.full("raw", &other);
    let parent = bench.done("pack raw=@raw dir=@other kind=full");
    let reply = bench.done("rebase dir=@gen-5 parent=@other");
    assert_eq!(reply["blocks"], json!({"stored": 2, "zero": 1, "inherited": 37}));
    assert_eq!(reply["generation"], 1);
    assert_eq!(bench.done("inspect dir=@gen-5")["base_build"], parent["build"]);
    assert_eq!(builds(&bench, "gen-5").len(), 2, "what nothing refers to is gone");
    bench.done("delete dir=@other");
    assert!(bench.memory("gen-5") == pages);
    bench.done("verify dir=@gen-5");

    // Onto its own ancestor: what lies in the same place is not even read.
    let reply = bench.done("rebase dir=@gen-4 parent=@gen-2 out=@out");
    assert_eq!(reply["generation"], 2);
    let changed = (1..39).filter(|page| page % 3 == 0 || page % 4 == 0).count();
    assert_eq!(reply["blocks"], json!({"stored": changed, "zero": 1, "inherited": 39 - changed}));
}

#[test]
fn prune_removes_what_nothing_refers_to_and_nothing_else() {
    let bench = Bench::new();
    let pages = five(&bench);
    let dir = bench.path("gen-5");
    fs::write(dir.join("snapfile"), "state").unwrap();
    fs::write(dir.join("memfile.not-a-build"), "whose is this").unwrap();
    let before = names(&dir);
    assert_eq!(bench.done("prune dir=@gen-5")["pruned"], json!([]));
    let strays = [
        ".memfile.00000000-0000-4000-8000-000000000001.77.partial",
        "memfile",
        "memfile.00000000-0000-4000-8000-000000000001",
        "memfile.00000000-0000-4000-8000-000000000001.sum",
    ];
    strays.iter().for_each(|name| fs::write(dir.join(name), [1; PAGE]).unwrap());
    // One that is being written: its writer holds a lock.
    let written = fs::File::create(dir.join(".memfile.header.78.partial")).unwrap();
    let lock = nix::fcntl::Flock::lock(written, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let reply = bench.done("prune dir=@gen-5");
    assert_eq!(reply["pruned"], json!(strays));
    assert!(reply["freed"].as_u64().unwrap() >= 4 * PAGE as u64);
    drop(lock);
    assert_eq!(bench.done("prune dir=@gen-5")["pruned"], json!([".memfile.header.78.partial"]));
    assert_eq!(names(&dir), before);
    assert!(bench.memory("gen-5") == pages);
}

#[test]
fn two_do_not_change_one_snapshot_at_a_time() {
    let bench = Bench::new();
    five(&bench);
    let dir = fs::File::open(bench.path("gen-5")).unwrap();
    let lock = nix::fcntl::Flock::lock(dir, nix::fcntl::FlockArg::LockExclusive).unwrap();
    for line in ["merge dir=@gen-5", "rebase dir=@gen-5 parent=@gen-1", "prune dir=@gen-5"] {
        let error = bench.snap(line).status_is(4).reply()["error"].clone();
        assert_eq!((&error["code"], &error["retry"]), (&"snap.busy".into(), &true.into()), "{line}");
    }
    drop(lock);
    bench.done("merge dir=@gen-5");
}

/// A copy of a snapshot's directory, its diff files linked.
fn link_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in names(from) {
        fs::hard_link(from.join(&name), to.join(&name)).unwrap();
    }
}

/// Runs a command again and again, killed a little later each time, until it comes through. Says how often it was.
fn killed_ever_later(bench: &Bench, line: &str, prepare: impl Fn(), check: impl Fn(bool)) -> u32 {
    prepare();
    let started = Instant::now();
    bench.done(line);
    let whole = started.elapsed();
    check(true);
    let mut killed = 0;
    for step in 0..40 {
        prepare();
        let mut program = bench.program(line);
        let mut child = program.command().stdout(Stdio::null()).spawn().unwrap();
        let pidfd = sys::process::Process::of_pid(child.id() as i32).and_then(|process| process.pidfd());
        // Not waiting for anything: a moment that no one knows is the point. The kernel ends it early if the child ends.
        if let Ok(Some(pidfd)) = pidfd {
            let _ = sys::process::readable(&pidfd, whole * step / 36 + Duration::from_micros(300));
        }
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        let done = child.wait().unwrap().success();
        killed += u32::from(!done);
        check(done);
    }
    killed
}

#[test]
fn killed_at_any_moment_the_chain_is_whole_and_prune_removes_what_is_left() {
    let bench = Bench::new();
    // Large enough to be struck in the middle.
    let mut pages: Vec<u8> = (0..2048).map(|page| (page % 200) as u8 + 1).collect();
    bench.full("raw", &pages);
    bench.done("pack raw=@raw dir=@first kind=full");
    let writes: Vec<_> = (0..2048).step_by(3).map(|page| (page, 201)).collect();
    writes.iter().for_each(|(page, value)| pages[*page] = *value);
    bench.diff("raw", 2048, &writes);
    bench.done("pack raw=@raw dir=@second kind=diff parent=@first");
    bench.full("raw", &[5; 2048]);
    bench.done("pack raw=@raw dir=@other kind=full");

    let mut killed = 0;
    for line in
        ["merge dir=@chain", "rebase dir=@chain parent=@other", "unpack dir=@second raw=@chain/memfile.raw"]
    {
        let prepare = || {
            let _ = fs::remove_dir_all(bench.path("chain"));
            link_all(&bench.path("second"), &bench.path("chain"));
        };
        let check = |done: bool| {
            bench.done("verify dir=@chain");
            assert!(bench.memory("chain") == pages, "{line}");
            let raw = bench.path("chain/memfile.raw");
            if raw.exists() {
                assert_eq!(fs::metadata(raw).unwrap().len(), (2048 * PAGE) as u64, "whole or not there");
            }
            bench.done("prune dir=@chain");
            let left = names(&bench.path("chain"));
            assert!(!left.iter().any(|name| name.ends_with(".partial")), "{line}: {left:?}");
            // A header, and each build with its checksums.
            let shown = bench.done("inspect dir=@chain");
            let files = 1 + 2 * shown["diffs"].as_array().unwrap().len();
            assert_eq!(left.iter().filter(|name| *name != "memfile.raw").count(), files, "{line}: {left:?}");
            assert!(!done || bench.memory("second") == pages);
        };
        killed += killed_ever_later(&bench, line, prepare, check);
    }
    assert!(killed > 0, "nothing was struck before it was done");
    assert!(
        bench.memory("second") == pages && bench.memory("first").len() == 2048,
        "what it was linked from is whole"
    );
}
