//! wrenn-snap that cannot finish: no space, nobody who reads the reply, a signal. The host is as it was.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Bench, everything, names};
use wrenn_tests::skip;

/// A small tmpfs, unmounted also when the test panics.
struct Tiny(PathBuf);

impl Tiny {
    fn mount(dir: &Path, bytes: u64) -> nix::Result<Self> {
        fs::create_dir(dir).unwrap();
        let options = format!("size={bytes}");
        mount(Some("wrenn-test"), dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        Ok(Self(dir.to_owned()))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmounted");
    }
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let bench = Bench::new();
    let _tiny = match Tiny::mount(&bench.path("tiny"), 64 << 10) {
        Ok(tiny) => tiny,
        Err(errno) => {
            return skip::here(format!("cannot mount a tmpfs: {errno}"));
        }
    };
    bench.full("raw", &(0..64).collect::<Vec<u8>>());
    bench.full("other", &[9; 64]);
    bench.done("pack raw=@other dir=@one kind=full mode=copy");
    fs::write(bench.path("one/snapfile"), "state").unwrap();
    fs::write(bench.path("tiny/old"), "what was there").unwrap();
    let before = everything(bench.roots.dir());
    for line in [
        "pack raw=@raw dir=@tiny/new kind=full mode=copy",
        "pack raw=@raw dir=@tiny/new kind=full mode=auto",
        "pack raw=@raw dir=@tiny/new kind=full parent=@one",
        "unpack dir=@one raw=@tiny/old",
        "merge dir=@one out=@tiny/new",
        "template dir=@one rootfs=@raw out=@tiny/new",
    ] {
        let error = bench.snap(line).status_is(6).reply()["error"].clone();
        assert_eq!((&error["kind"], &error["errno"]), (&"exhausted".into(), &28.into()), "{line}: {error}");
        assert!(everything(bench.roots.dir()) == before, "{line} left something");
    }
    let error =
        bench.snap("pack raw=@raw dir=@tiny/new kind=full mode=inplace").status_is(2).reply()["error"]
            .clone();
    assert!(error["message"].as_str().unwrap().starts_with("mode: "), "{error}");
    assert!(everything(bench.roots.dir()) == before);
}

#[test]
fn a_full_disk_after_the_raw_file_was_taken_gives_it_back() {
    let bench = Bench::new();
    // Room for the raw file and little else: the header does not fit any more.
    let pages = 512;
    let _tiny = match Tiny::mount(&bench.path("tiny"), (pages as u64 + 4) * 4096) {
        Ok(tiny) => tiny,
        Err(errno) => return skip::here(format!("cannot mount a tmpfs: {errno}")),
    };
    // No page is zeros, so that packing frees nothing; every other one is unchanged, so that the header is long.
    let values: Vec<u8> = (0..pages).map(|page| (page % 7) as u8 + 1).collect();
    bench.full("raw", &values);
    bench.done("pack raw=@raw dir=@one kind=full");
    let changed: Vec<u8> =
        values.iter().enumerate().map(|(n, value)| if n % 2 == 0 { 99 } else { *value }).collect();
    bench.full("tiny/raw", &changed);
    let before = everything(bench.roots.dir());
    let blocks = fs::metadata(bench.path("tiny/raw")).unwrap().blocks();
    bench.snap("pack raw=@tiny/raw dir=@tiny/new kind=full parent=@one mode=inplace").status_is(6);
    assert!(everything(bench.roots.dir()) == before);
    assert_eq!(fs::metadata(bench.path("tiny/raw")).unwrap().blocks(), blocks);
}

#[test]
fn a_reply_that_nobody_reads_undoes_the_work() {
    let bench = Bench::new();
    bench.chain();
    bench.working_set("two", &[(1, 1)]);
    fs::write(bench.path("two/snapfile"), "state").unwrap();
    fs::write(bench.path("old"), "what was there").unwrap();
    bench.full("raw", &[4, 0, 4]);
    bench.diff("sparse", 3, &[(0, 0), (1, 8)]);
    let before = everything(bench.roots.dir());
    for line in [
        "pack raw=@raw dir=@new kind=full mode=inplace",
        "pack raw=@raw dir=@new kind=full mode=copy",
        "pack raw=@raw dir=@new kind=full parent=@two mode=inplace",
        "pack raw=@sparse dir=@new kind=diff parent=@two mode=inplace",
        "unpack dir=@two raw=@old",
        "unpack dir=@two raw=@new",
        "map dir=@two svg=@old",
        "merge dir=@two",
        "merge dir=@two out=@new",
        "template dir=@two rootfs=@raw out=@new",
    ] {
        assert_eq!(bench.program(line).run_unread(), Some(8), "{line}");
        assert!(everything(bench.roots.dir()) == before, "{line} left something");
    }
    // The zeros that were written to the diff are still told from its holes.
    let reply = bench.done("pack raw=@sparse dir=@new kind=diff parent=@two");
    assert_eq!(reply["blocks"], wrenn_tests::json!({"stored": 1, "zero": 1, "inherited": 1}));
    assert_eq!(bench.memory("new"), [0, 8, 6]);
}

/// Runs a pack and sends it a signal as soon as a name that begins so appears in its directory. Returns whether
/// it was ended by it.
fn struck(bench: &Bench, line: &str, name: &str, signal: Signal) -> bool {
    let mut program = bench.program(line);
    let mut child = program.command().stdout(std::process::Stdio::null()).spawn().unwrap();
    let dir = bench.path("new");
    loop {
        if dir.is_dir() && names(&dir).iter().any(|other| other.starts_with(name)) {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
            break;
        }
        if child.try_wait().unwrap().is_some() {
            break;
        }
    }
    use std::os::unix::process::ExitStatusExt;
    child.wait().unwrap().signal() == Some(signal as i32)
}

#[test]
fn killed_at_any_point_it_leaves_a_complete_snapshot_or_none() {
    let bench = Bench::new();
    let values: Vec<u8> = (0..1024).map(|page| if page % 3 == 0 { 0 } else { page as u8 | 1 }).collect();
    bench.full("base", &[3; 1024]);
    bench.done("pack raw=@base dir=@one kind=full");
    let mut killed = 0;
    for mode in ["inplace", "copy"] {
        for name in ["memfile.", ".memfile", "memfile.header"] {
            for kind in ["full", "diff parent=@one"] {
                bench.full("raw", &values);
                let line = format!("pack raw=@raw dir=@new mode={mode} kind={kind}");
                killed += u32::from(struck(&bench, &line, name, Signal::SIGKILL));
                let complete = bench.path("new/memfile.header").exists();
                if complete {
                    bench.done("verify dir=@new");
                    assert!(bench.memory("new") == values, "{line}, killed at {name}");
                } else {
                    assert!(
                        fs::read(bench.path("raw"))
                            .unwrap()
                            .chunks(4096)
                            .map(|page| page[0])
                            .eq(values.clone())
                    );
                    bench.snap("inspect dir=@new").status_is(3);
                    // What is left does not keep the next try from the same raw file.
                    bench.done("delete dir=@new");
                    bench.done(&line);
                    assert!(bench.memory("new") == values, "{line}, again");
                }
                bench.done("delete dir=@new");
            }
        }
    }
    assert!(killed > 0, "no pack was struck before it was done");
}

#[test]
fn terminated_it_undoes_its_work() {
    let bench = Bench::new();
    let values: Vec<u8> = (0..1024).map(|page| page as u8).collect();
    bench.full("raw", &values);
    let before = everything(bench.roots.dir());
    for name in ["memfile.", ".memfile"] {
        let ended = struck(&bench, "pack raw=@raw dir=@new kind=full mode=copy", name, Signal::SIGTERM);
        if !bench.path("new").exists() {
            assert!(ended, "a program that was asked to end by a signal ends by it");
            assert!(everything(bench.roots.dir()) == before);
        } else {
            // It was past the point where it looks.
            bench.done("verify dir=@new");
            bench.done("delete dir=@new");
        }
    }
}
