//! What the program needs of memory itself does not grow with the memory it works on.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use nix::sys::resource::{UsageWho, getrusage};
use support::{Bench, PAGE};

/// The most that any program so far had in memory, mapped files included, in MiB.
fn peak() -> i64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() / 1024
}

#[test]
fn no_verb_needs_64_mib_for_4_gib() {
    const PAGES: u64 = (4 << 30) / PAGE as u64;
    let bench = Bench::new();
    // 48 MiB of pages that stand alone, and 64 MiB that lie together.
    let raw = |name: &str, value: u8| {
        let file = File::create(bench.path(name)).unwrap();
        file.set_len(PAGES * PAGE as u64).unwrap();
        for page in 0..12_288 {
            file.write_all_at(&[value; PAGE], page * (PAGES / 12_288) * PAGE as u64).unwrap();
        }
        // Piece by piece: a child begins with what this process had in memory.
        let piece = vec![value; 1 << 20];
        (0..64).for_each(|mib| file.write_all_at(&piece, (1 << 30) + (mib << 20)).unwrap());
    };
    raw("raw", 1);
    raw("second", 2);
    raw("third", 3);
    for line in [
        "pack raw=@raw dir=@one kind=full",
        "pack raw=@second dir=@two kind=diff parent=@one mode=copy",
        "pack raw=@third dir=@three kind=full parent=@two mode=copy",
        "inspect dir=@two",
        "verify dir=@two",
        "map dir=@two svg=@map.svg",
        "rebase dir=@three parent=@one out=@four",
        "merge dir=@two out=@five",
        "unpack dir=@two raw=@raw",
        "prune dir=@two",
    ] {
        bench.done(line);
        assert!(peak() < 64, "{line}: {} MiB", peak());
    }
}

#[test]
fn a_pipe_is_packed_in_less_than_64_mib_however_much_comes() {
    let bench = Bench::new();
    let mut program = bench.program("pack raw=- dir=@one kind=full");
    let mut child = program
        .command()
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let some: Vec<u8> = (0..1 << 20).map(|at: u32| if at < 100_000 { 7 } else { 0 }).collect();
    (0..512).for_each(|_| std::io::Write::write_all(&mut stdin, &some).unwrap());
    drop(stdin);
    assert!(child.wait().unwrap().success());
    assert!(peak() < 64, "{} MiB", peak());
    assert_eq!(bench.done("inspect dir=@one")["blocks"]["stored"], 512 * 25);
}
