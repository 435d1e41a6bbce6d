//! `wrenn-snap`'s work on memory images against the original's loop (read 4 KiB, test for zeros, write what is not zero) and
//! `cp --sparse=always`, on the same files, on tmpfs, in the same run. Each case is measured in rounds, all ways of doing it
//! in each, so that what else the machine does hits all of them; the table has minima and medians.
//!
//! `WRENN_BENCH_MIB` (2048; as much again is needed, twice), `WRENN_BENCH_ROUNDS` (5), `WRENN_BENCH_CASES` (part of a name).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use snap::pack::{Kind, Mode, Pack, pack};
use snap::{Image, Raw};
use wire::Undo;

const BLOCK: usize = 4096;
/// What a diff changes.
const CHANGED: usize = 64 << 20;

fn main() {
    // `cargo bench` passes it; `cargo test` and `cargo nextest list` ask for other things.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let bench = Bench::new();
    println!("| case | way | min, ms | median, ms | the original's loop takes, × | `cp` takes, × |");
    println!("| --- | --- | --- | --- | --- | --- |");
    bench.full("full, 40 % in runs", |bench, path| bench.runs(path));
    bench.full("full, all zeros", |bench, path| bench.blocks(path, |_, _| false));
    bench.full("full, all data", |bench, path| bench.blocks(path, |_, _| true));
    bench.full("full, 40 % in single blocks", |bench, path| {
        bench.blocks(path, |_, random| random.below(5) < 2)
    });
    bench.diff();
    bench.content();
    bench.merge();
}

/// One way of doing a case: what it is called, and the work.
type Way<'a> = (&'static str, Box<dyn Fn(&Path) + 'a>);

struct Bench {
    home: tempfile::TempDir,
    blocks: usize,
    rounds: usize,
    wanted: String,
}

impl Bench {
    fn new() -> Self {
        let number = |name: &str, default| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        let home = tempfile::Builder::new().prefix("wrenn-bench-").tempdir_in("/dev/shm").expect("a tmpfs");
        Self {
            home,
            blocks: (number("WRENN_BENCH_MIB", 2048) << 20) / BLOCK,
            rounds: number("WRENN_BENCH_ROUNDS", 5),
            wanted: std::env::var("WRENN_BENCH_CASES").unwrap_or_default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Does each way in each round, on a fresh file each time, and prints what they took.
    fn case(&self, name: &str, make: &dyn Fn(&Path), ways: &[Way]) {
        let mut times = vec![Vec::new(); ways.len()];
        for _ in 0..self.rounds {
            for ((_, work), times) in ways.iter().zip(&mut times) {
                let raw = self.path("raw");
                make(&raw);
                let started = Instant::now();
                work(&raw);
                times.push(started.elapsed().as_secs_f64() * 1000.0);
                for name in ["raw", "out"] {
                    let _ = fs::remove_file(self.path(name));
                }
                let _ = fs::remove_dir_all(self.path("packed"));
            }
        }
        times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
        let median = |way: usize| times[way][times[way].len() / 2];
        for (way, (what, _)) in ways.iter().enumerate() {
            let ratio = |other: usize| format!("{:.1}", median(other) / median(way));
            println!(
                "| {name} | {what} | {:.1} | {:.1} | {} | {} |",
                times[way][0],
                median(way),
                ratio(0),
                ratio(1)
            );
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        name.contains(&self.wanted)
    }

    /// The first two ways of all cases.
    fn others(&self) -> Vec<Way<'_>> {
        vec![
            ("the original's loop", Box::new(|raw: &Path| original(raw, &self.path("out")))),
            (
                "cp --sparse=always",
                Box::new(|raw: &Path| {
                    let done =
                        Command::new("cp").arg("--sparse=always").arg(raw).arg(self.path("out")).status();
                    assert!(done.expect("cp").success());
                }),
            ),
        ]
    }

    fn packed<'a>(&'a self, what: &'static str, kind: Kind, mode: Mode, parent: Option<PathBuf>) -> Way<'a> {
        (
            what,
            Box::new(move |raw: &Path| {
                self.pack(raw.to_owned().into(), kind, mode, parent.clone(), "packed")
            }),
        )
    }

    fn pack(&self, raw: Raw, kind: Kind, mode: Mode, parent: Option<PathBuf>, dir: &str) {
        let request = Pack { parent, mode, ..Pack::new(raw, self.path(dir), kind) };
        let mut undo = Undo::default();
        pack(&request, &mut undo).expect("packed");
        undo.commit();
    }

    fn full(&self, name: &str, make: impl Fn(&Self, &Path)) {
        if !self.is_wanted(name) {
            return;
        }
        let mut ways = self.others();
        ways.push(self.packed("wrenn-snap, in place", Kind::Full, Mode::Inplace, None));
        ways.push(self.packed("wrenn-snap, copied", Kind::Full, Mode::Copy, None));
        ways.push(("wrenn-snap, from a pipe", Box::new(|raw: &Path| self.pack_pipe(raw))));
        self.case(name, &|path| make(self, path), &ways);
    }

    /// `cat raw | wrenn-snap pack raw=-`.
    fn pack_pipe(&self, raw: &Path) {
        let mut cat = Command::new("cat").arg(raw).stdout(Stdio::piped()).spawn().expect("cat");
        let pipe = cat.stdout.take().expect("its stdout");
        self.pack(Raw::Pipe(pipe.into()), Kind::Full, Mode::Auto, None, "packed");
        assert!(cat.wait().expect("cat").success());
    }

    fn parent(&self) -> PathBuf {
        let raw = self.path("raw");
        self.runs(&raw);
        self.pack(raw.into(), Kind::Full, Mode::Inplace, None, "parent");
        self.path("parent")
    }

    /// A sparse diff with 64 MiB of changes in runs of 1 to 16 blocks.
    fn diff(&self) {
        let name = "diff, 64 MiB changed";
        if !self.is_wanted(name) {
            return;
        }
        let parent = self.parent();
        let mut ways = self.others();
        ways.push(self.packed("wrenn-snap, in place", Kind::Diff, Mode::Inplace, Some(parent.clone())));
        ways.push(self.packed("wrenn-snap, copied", Kind::Diff, Mode::Copy, Some(parent.clone())));
        let make = |path: &Path| {
            let file = File::create(path).unwrap();
            file.set_len((self.blocks * BLOCK) as u64).unwrap();
            self.change(&file, 2);
        };
        self.case(name, &make, &ways);
        fs::remove_dir_all(parent).unwrap();
    }

    /// All of memory again, of which 64 MiB differ.
    fn content(&self) {
        let name = "full with its parent, 64 MiB changed";
        if !self.is_wanted(name) {
            return;
        }
        let parent = self.parent();
        let mut ways = self.others();
        ways.push(self.packed("wrenn-snap", Kind::Full, Mode::Auto, Some(parent.clone())));
        let make = |path: &Path| {
            self.runs(path);
            self.change(&File::options().write(true).open(path).unwrap(), 3);
        };
        self.case(name, &make, &ways);
        fs::remove_dir_all(parent).unwrap();
    }

    /// Ten generations, 64 MiB changed in each, become one; the other ways write the same memory from one flat file.
    fn merge(&self) {
        let name = "merge of 10 generations";
        if !self.is_wanted(name) {
            return;
        }
        let mut parent = self.parent();
        for generation in 2..=10 {
            let raw = self.path("raw");
            let file = File::create(&raw).unwrap();
            file.set_len((self.blocks * BLOCK) as u64).unwrap();
            self.change(&file, generation);
            let dir = format!("gen-{generation}");
            self.pack(raw.into(), Kind::Diff, Mode::Inplace, Some(parent.clone()), &dir);
            fs::remove_dir_all(parent).unwrap();
            parent = self.path(&dir);
        }
        let flat = self.path("flat");
        let mut undo = Undo::default();
        snap::unpack::unpack(&parent, &flat, 0, None, &mut undo).unwrap();
        undo.commit();
        let image = Image::open(&parent).unwrap();
        let ways: Vec<Way> = vec![
            (
                "a lookup, a read and a write for each 4 KiB",
                Box::new(|_: &Path| by_blocks(&image, &self.path("out"))),
            ),
            (
                "cp --sparse=always of the flat file",
                Box::new(|_: &Path| {
                    let done =
                        Command::new("cp").arg("--sparse=always").arg(&flat).arg(self.path("out")).status();
                    assert!(done.expect("cp").success());
                }),
            ),
            (
                "wrenn-snap merge",
                Box::new(|_: &Path| {
                    let mut undo = Undo::default();
                    snap::merge::merge(&parent, Some(&self.path("packed")), 0, None, &mut undo).unwrap();
                    undo.commit();
                }),
            ),
        ];
        self.case(name, &|_| {}, &ways);
    }

    /// A dense file of which two blocks in five are not zero, in runs of about 40 blocks with the zeros.
    fn runs(&self, path: &Path) {
        let mut random = Random(1);
        let (mut left, mut data) = (0, true);
        self.blocks(path, |_, _| {
            if left == 0 {
                data = !data;
                // Runs of zeros are half as long again: 60 % to 40 %.
                left = if data { 2 * random.below(32) + 2 } else { 3 * random.below(32) + 3 } / 2;
            }
            left -= 1;
            data
        });
    }

    /// A dense file of which those blocks are not zero for which `is_data` says so.
    fn blocks(&self, path: &Path, mut is_data: impl FnMut(usize, &mut Random) -> bool) {
        let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
        let mut random = Random(1);
        for index in 0..self.blocks {
            let mut block = [0; BLOCK];
            if is_data(index, &mut random) {
                // A scan that looks only at beginnings would be wrong.
                block[random.below(BLOCK)..].fill(random.below(255) as u8 + 1);
            }
            file.write_all(&block).unwrap();
        }
        file.into_inner().unwrap();
    }

    fn change(&self, file: &File, seed: u64) {
        let mut random = Random(seed);
        let mut left = (CHANGED / BLOCK).min(self.blocks / 2);
        while left > 0 {
            let length = (random.below(16) + 1).min(left);
            let at = random.below(self.blocks - length);
            file.write_all_at(&vec![seed as u8 + 5; length * BLOCK], (at * BLOCK) as u64).unwrap();
            left -= length;
        }
    }
}

/// The original's loop, as it is.
fn original(raw: &Path, out: &Path) {
    let (mut raw, mut out) = (File::open(raw).unwrap(), File::create(out).unwrap());
    let mut block = [0; BLOCK];
    while raw.read(&mut block).unwrap() == BLOCK {
        if block.iter().any(|byte| *byte != 0) {
            out.write_all(&block).unwrap();
        }
    }
}

/// The original's way to merge: block by block.
fn by_blocks(image: &Image, out: &Path) {
    let mut out = File::create(out).unwrap();
    for at in (0..image.size()).step_by(BLOCK) {
        for piece in image.pieces(at, at + BLOCK as u64) {
            if let snap::Content::Data(bytes) = piece.content {
                out.write_all(bytes).unwrap();
            }
        }
    }
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}
