//! `wrenn-snap pack` against the original's loop: read 4 KiB, test for zeros, write what is not zero. Both work on the
//! same file on tmpfs, in the same run. 2 GiB take as much again in memory; `WRENN_BENCH_MIB` makes it smaller.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use snap::Removed;
use snap::pack::{Kind, Mode, Pack, pack};

const BLOCK: usize = 4096;

/// Where the files are made, and how many blocks of memory there are.
struct Bench {
    home: tempfile::TempDir,
    blocks: usize,
}

impl Bench {
    fn new() -> Self {
        let mib = std::env::var("WRENN_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(2048);
        let home = tempfile::Builder::new().prefix("wrenn-bench-").tempdir_in("/dev/shm").expect("a tmpfs");
        Self { home, blocks: (mib << 20) / BLOCK }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A dense memory file of which two blocks in five are not zero, in runs of up to 32.
    fn full(&self) -> PathBuf {
        let path = self.path("raw");
        let mut file = std::io::BufWriter::with_capacity(1 << 20, File::create(&path).unwrap());
        let mut random = Random(1);
        let mut left = self.blocks;

        for run in 0.. {
            // Runs of zeros are half as long again: 60 % to 40 %.
            let length = if run % 2 == 0 { 3 * random.below(32) + 3 } else { 2 * random.below(32) + 2 };
            let length = (length / 2).min(left);
            for _ in 0..length {
                let mut block = [0; BLOCK];
                if run % 2 == 1 {
                    block[random.below(BLOCK)..].fill(random.below(255) as u8 + 1);
                }
                file.write_all(&block).unwrap();
            }
            left -= length;
            if left == 0 {
                break;
            }
        }
        file.into_inner().unwrap();
        path
    }

    /// A sparse diff with 64 MiB of changes in runs of 1 to 16 blocks.
    fn diff(&self) -> PathBuf {
        let path = self.path("raw");
        let file = File::create(&path).unwrap();
        file.set_len((self.blocks * BLOCK) as u64).unwrap();
        let mut random = Random(2);
        let mut left = (64 << 20) / BLOCK;
        while left > 0 {
            let length = (random.below(16) + 1).min(left);
            let at = random.below(self.blocks - length);
            file.write_all_at(&vec![7; length * BLOCK], (at * BLOCK) as u64).unwrap();
            left -= length;
        }
        path
    }

    fn pack(&self, raw: &Path, kind: Kind, mode: Mode, parent: Option<PathBuf>) -> (Duration, PathBuf) {
        let request = Pack {
            raw: raw.to_owned().into(),
            dir: self.path("packed"),
            kind,
            parent,
            removed: Removed::new(),
            size: None,
            block_size: None,
            mode,
            build: None,
            checksums: true,
        };
        let mut undo = wire::Undo::default();
        let started = Instant::now();
        pack(&request, &mut undo).unwrap();
        undo.commit();
        (started.elapsed(), request.dir)
    }

    /// Times `work` on a fresh raw file, as often as criterion asks.
    fn times(&self, times: u64, make: impl Fn() -> PathBuf, work: impl Fn(&Path) -> Duration) -> Duration {
        let once = |_| {
            let raw = make();
            let elapsed = work(&raw);
            let _ = fs::remove_file(raw);
            let _ = fs::remove_file(self.path("original"));
            let _ = fs::remove_dir_all(self.path("packed"));
            elapsed
        };
        (0..times).map(once).sum()
    }
}

/// The original's loop, as it is.
fn original(raw: &Path, out: &Path) -> Duration {
    let started = Instant::now();
    let (mut raw, mut out) = (File::open(raw).unwrap(), File::create(out).unwrap());
    let mut block = [0; BLOCK];
    while raw.read(&mut block).unwrap() == BLOCK {
        if block.iter().any(|byte| *byte != 0) {
            out.write_all(&block).unwrap();
        }
    }
    started.elapsed()
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn full(criterion: &mut Criterion) {
    let bench = Bench::new();
    let mut group = criterion.benchmark_group("pack full, 40 % non-zero");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    group.bench_function("the original's loop", |b| {
        b.iter_custom(|n| bench.times(n, || bench.full(), |raw| original(raw, &bench.path("original"))));
    });
    for (name, mode) in [("wrenn-snap, in place", Mode::Inplace), ("wrenn-snap, copied", Mode::Copy)] {
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                bench.times(n, || bench.full(), |raw| bench.pack(raw, Kind::Full, mode, None).0)
            });
        });
    }
    group.finish();
}

fn diff(criterion: &mut Criterion) {
    let bench = Bench::new();
    let (_, made) = bench.pack(&bench.full(), Kind::Full, Mode::Inplace, None);
    let parent = bench.path("parent");
    fs::rename(made, &parent).unwrap();
    let mut group = criterion.benchmark_group("pack diff, 64 MiB changed");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    group.bench_function("the original's loop", |b| {
        b.iter_custom(|n| bench.times(n, || bench.diff(), |raw| original(raw, &bench.path("original"))));
    });
    for (name, mode) in [("wrenn-snap, in place", Mode::Inplace), ("wrenn-snap, copied", Mode::Copy)] {
        group.bench_function(name, |b| {
            b.iter_custom(|n| {
                let pack = |raw: &Path| bench.pack(raw, Kind::Diff, mode, Some(parent.clone())).0;
                bench.times(n, || bench.diff(), pack)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, full, diff);
criterion_main!(benches);
