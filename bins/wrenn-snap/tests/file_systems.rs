//! The same work on every file system that memory lies on: tmpfs, ext4, XFS, btrfs. They differ in how they report holes,
//! make them, and share data. Memory is compared with a model of it; wants root, and mounts what it makes.

mod support;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use support::{Bench, PAGE};

/// Bytes of memory: many blocks of 2 MiB.
const MEMORY: usize = 32 << 20;

/// A file system of the test's own, under `fs` in its directory.
struct Mounted {
    bench: Bench,
}

impl Mounted {
    /// Makes and mounts one. `None`, and reported, where that cannot be.
    fn new(kind: &str) -> Option<Self> {
        let bench = Bench::new();
        let (image, at) = (bench.path("image"), bench.path("fs"));
        File::create(&image).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        if kind == "tmpfs" {
            mount.args(["-t", kind, "-o", "size=512m", "none"]);
        } else {
            let make = format!("mkfs.{kind}");
            let made = Command::new(&make).arg("-q").arg(&image).output();
            if !made.as_ref().is_ok_and(|made| made.status.success()) {
                wrenn_tests::skip::here(format!("{make} cannot: {made:?}"));
                return None;
            }
            mount.args(["-o", "loop"]).arg(&image);
        }
        let mounted = mount.arg(&at).output().expect("mount");
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            wrenn_tests::skip::here(format!("cannot mount {kind}: {}", why.trim()));
            return None;
        }
        Some(Self { bench })
    }

    /// Bytes in use on it, all told.
    fn used(&self) -> u64 {
        nix::unistd::sync();
        let system = nix::sys::statvfs::statvfs(&self.bench.path("fs")).unwrap();
        (system.blocks() - system.blocks_free()) * system.fragment_size()
    }

    fn memory(&self, dir: &str) -> Vec<u8> {
        self.bench.done(&format!("unpack dir=@fs/{dir} raw=@fs/unpacked"));
        let bytes = fs::read(self.bench.path("fs/unpacked")).unwrap();
        fs::remove_file(self.bench.path("fs/unpacked")).unwrap();
        bytes
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.bench.path("fs")).status();
        assert!(done.is_ok_and(|status| status.success()), "umount");
    }
}

/// Memory that is not zero here, other than what `seed` another makes.
fn fill(memory: &mut [u8], pages: Range<usize>, seed: usize) {
    for page in pages {
        for (at, byte) in memory[page * PAGE..(page + 1) * PAGE].iter_mut().enumerate() {
            *byte = ((page * 31 + at * 7 + seed * 13) % 255) as u8 + 1;
        }
    }
}

/// What a guest writes between two snapshots: runs of pages, and some of zeros.
fn change(mounted: &Mounted, memory: &mut [u8], seed: usize) {
    let file = File::create(mounted.bench.path("fs/raw")).unwrap();
    file.set_len(MEMORY as u64).unwrap();
    for n in 0..40 {
        let first = (n * 197 + seed * 61) % (MEMORY / PAGE - 8);
        let pages = first..first + n % 7 + 1;
        let bytes = pages.start * PAGE..pages.end * PAGE;
        match n % 5 {
            0 => memory[bytes.clone()].fill(0),
            _ => fill(memory, pages, seed),
        }
        file.write_all_at(&memory[bytes.clone()], bytes.start as u64).unwrap();
    }
}

fn memory_survives(kind: &str) {
    let Some(mounted) = Mounted::new(kind) else { return };
    let bench = &mounted.bench;
    for block_size in [4096, 2 << 20] {
        // Two fifths are data; the file is written whole, zeros too.
        let mut memory = vec![0; MEMORY];
        (0..MEMORY / PAGE)
            .step_by(100)
            .for_each(|page| fill(&mut memory, page..page + 40.min(MEMORY / PAGE - page), 1));
        fs::write(bench.path("fs/raw"), &memory).unwrap();
        let inode = fs::metadata(bench.path("fs/raw")).unwrap().ino();
        let reply = bench
            .done(&format!("pack raw=@fs/raw dir=@fs/one kind=full mode=inplace block_size:={block_size}"));
        let diff = fs::metadata(reply["diff"]["path"].as_str().unwrap()).unwrap();
        assert_eq!(diff.ino(), inode, "in place, no data moves");
        let stored = reply["diff"]["bytes"].as_u64().unwrap();
        assert!(
            diff.blocks() * 512 <= stored + stored / 8,
            "{kind}: {} bytes are taken",
            diff.blocks() * 512
        );
        assert!(mounted.memory("one") == memory, "{kind}, {block_size}: a full one");

        for (n, mode) in [(2, "inplace"), (3, "copy"), (4, "auto")] {
            change(&mounted, &mut memory, n);
            let (dir, parent) = (["two", "three", "four"][n - 2], ["one", "two", "three"][n - 2]);
            bench.done(&format!("pack raw=@fs/raw dir=@fs/{dir} kind=diff parent=@fs/{parent} mode={mode}"));
            let _ = fs::remove_file(bench.path("fs/raw"));
            assert!(mounted.memory(dir) == memory, "{kind}, {block_size}, {mode}: a diff");
        }
        bench.done("verify dir=@fs/four");
        bench.done("merge dir=@fs/four out=@fs/flat");
        assert!(mounted.memory("flat") == memory, "{kind}, {block_size}: merged");
        bench.done("rebase dir=@fs/four parent=@fs/one out=@fs/based");
        assert!(mounted.memory("based") == memory, "{kind}, {block_size}: on another parent");
        bench.done("verify dir=@fs/based");
        ["one", "two", "three", "four", "flat", "based"].iter().for_each(|dir| {
            bench.done(&format!("delete dir=@fs/{dir}"));
        });
    }
}

/// What a copy takes beyond the file it is made of, in bytes.
fn copy_takes(kind: &str) -> Option<u64> {
    let mounted = Mounted::new(kind)?;
    let mut memory = vec![0; MEMORY];
    fill(&mut memory, 0..MEMORY / PAGE, 1);
    fs::write(mounted.bench.path("fs/raw"), &memory).unwrap();
    let before = mounted.used();
    mounted.bench.done("pack raw=@fs/raw dir=@fs/one kind=full mode=copy");
    let taken = mounted.used().saturating_sub(before);
    assert!(mounted.memory("one") == memory);
    // They are two files all the same.
    fs::write(mounted.bench.path("fs/raw"), vec![7; MEMORY]).unwrap();
    assert!(mounted.memory("one") == memory, "{kind}: the raw file is another's by now");
    Some(taken)
}

#[test]
fn memory_survives_tmpfs() {
    memory_survives("tmpfs");
}

#[test]
fn memory_survives_ext4() {
    memory_survives("ext4");
}

#[test]
fn memory_survives_xfs() {
    memory_survives("xfs");
}

#[test]
fn memory_survives_btrfs() {
    memory_survives("btrfs");
}

#[test]
fn a_copy_shares_its_data_where_the_file_system_can() {
    for kind in ["xfs", "btrfs"] {
        let Some(taken) = copy_takes(kind) else {
            continue;
        };
        assert!(taken < MEMORY as u64 / 4, "{kind}: {taken} bytes are taken");
    }
}
