//! Ten generations of a guest on a VMM that always dumps all of its memory, as Cloud Hypervisor does: packed on top of each
//! other (`pack kind=full parent=…`) and unpacked again, against a copy of each dump. What is stored, and how long it takes;
//! each unpacked file is compared with the memory. 512 MiB of which 5 % change each time; `WRENN_BENCH_MIB` makes it
//! smaller, `WRENN_BENCH_DIR` (default: the temporary directory) is where the files go: a disk, for times that mean anything.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use snap::pack::{Kind, Pack, pack};
use snap::unpack::unpack;
use wire::Undo;

const PAGE: usize = 4096;
const GENERATIONS: usize = 10;

fn main() {
    // `cargo test --benches` and `cargo nextest list` ask for other things.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mib = std::env::var("WRENN_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512);
    let dir = std::env::var_os("WRENN_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let home = tempfile::Builder::new().prefix("wrenn-bench-").tempdir_in(dir).expect("a directory");
    let path = |name: String| home.path().join(name);
    let mut guest = Guest::new(mib << 20);
    let mut total = Row::default();
    println!("| generation | packed, MiB | pack, ms | unpack, ms | copied, MiB | copy, ms |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for generation in 1..=GENERATIONS {
        if generation > 1 {
            guest.change();
        }
        let raw = path("raw".into());
        guest.dump(&raw);

        let copied = path(format!("copy-{generation}"));
        let started = Instant::now();
        copy(&raw, &copied);
        let copy_ms = ms(started);

        let packed = path(format!("gen-{generation}"));
        let parent = (generation > 1).then(|| path(format!("gen-{}", generation - 1)));
        let started = Instant::now();
        pack_on(&raw, &packed, parent);
        let pack_ms = ms(started);

        let back = path("back".into());
        let started = Instant::now();
        let mut undo = Undo::default();
        unpack(&packed, &back, 0, None, &mut undo).expect("unpacked");
        undo.commit();
        let unpack_ms = ms(started);
        assert!(fs::read(&back).expect("unpacked") == guest.memory, "generation {generation} is exact");
        fs::remove_file(&back).expect("removed");

        let row = Row {
            packed: stored(&packed, &path(format!("gen-{}", generation - 1))),
            copied: copied.metadata().expect("a copy").blocks() * 512,
            ms: [pack_ms, unpack_ms, copy_ms],
        };
        println!("| {generation} {row}");
        total.add(&row);
    }
    println!("| all {total}");
}

#[derive(Default)]
struct Row {
    packed: u64,
    copied: u64,
    ms: [f64; 3],
}

impl Row {
    fn add(&mut self, other: &Self) {
        self.packed += other.packed;
        self.copied += other.copied;
        self.ms.iter_mut().zip(other.ms).for_each(|(sum, ms)| *sum += ms);
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let [pack, unpack, copy] = self.ms;
        let (packed, copied) = (mib(self.packed), mib(self.copied));
        write!(f, "| {packed:.1} | {pack:.0} | {unpack:.0} | {copied:.1} | {copy:.0} |")
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Memory of which three pages in five are in use, in runs.
struct Guest {
    memory: Vec<u8>,
    random: u64,
}

impl Guest {
    fn new(bytes: usize) -> Self {
        let mut guest = Self { memory: vec![0; bytes], random: 0x9e37_79b9_7f4a_7c15 };
        let pages = bytes / PAGE;
        let mut at = 0;
        while at < pages {
            let used = (guest.below(48) + 12).min(pages - at);
            guest.fill(at, used);
            at += used + guest.below(32) + 8;
        }
        guest
    }

    /// Writes 5 % of all pages anew, in runs of up to 32.
    fn change(&mut self) {
        let pages = self.memory.len() / PAGE;
        let mut left = pages / 20;
        while left > 0 {
            let run = (self.below(32) + 1).min(left);
            let at = self.below(pages - run);
            self.fill(at, run);
            left -= run;
        }
    }

    fn fill(&mut self, page: usize, pages: usize) {
        for at in (page * PAGE..(page + pages) * PAGE).step_by(8) {
            let next = self.next();
            self.memory[at..at + 8].copy_from_slice(&next.to_le_bytes());
        }
    }

    /// All of memory as one file, with holes where it was never written.
    fn dump(&self, path: &Path) {
        let file = File::create(path).expect("a raw file");
        file.set_len(self.memory.len() as u64).expect("its size");
        for (page, bytes) in self.memory.chunks(PAGE).enumerate() {
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(bytes, (page * PAGE) as u64).expect("written");
            }
        }
        // What the VMM wrote is on its way to the disk in any case.
        file.sync_all().expect("synced");
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
}

fn pack_on(raw: &Path, dir: &Path, parent: Option<PathBuf>) {
    let request = Pack { parent, ..Pack::new(raw.to_owned(), dir.to_owned(), Kind::Full) };
    let mut undo = Undo::default();
    pack(&request, &mut undo).expect("packed");
    undo.commit();
}

/// A copy that keeps the holes, and is on the disk when it is done.
fn copy(from: &Path, to: &Path) {
    let (source, target) = (File::open(from).expect("opened"), File::create(to).expect("made"));
    target.set_len(source.metadata().expect("its size").len()).expect("its size");
    let mut buffer = vec![0; 1 << 20];
    for data in sys::sparse::data(&source) {
        let data = data.expect("its data");
        let mut at = data.start;
        while at < data.end {
            let length = (data.end - at).min(buffer.len() as u64) as usize;
            source.read_exact_at(&mut buffer[..length], at).expect("read");
            target.write_all_at(&buffer[..length], at).expect("written");
            at += length as u64;
        }
    }
    target.sync_all().expect("synced");
}

/// What the files of a directory take on disk that are not in the one before as well.
fn stored(dir: &Path, before: &Path) -> u64 {
    let files = |dir: &Path| -> HashMap<u64, u64> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let metadata = entries.map(|entry| entry.metadata().expect("a file"));
        metadata.map(|metadata| (metadata.ino(), metadata.blocks() * 512)).collect()
    };
    let before = files(before);
    files(dir).into_iter().filter(|(inode, _)| !before.contains_key(inode)).map(|(_, bytes)| bytes).sum()
}
