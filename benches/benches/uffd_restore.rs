//! What a restored VM waits for its memory: `wrenn-uffd` without prefetch, with all of it, and with a recorded working set,
//! beside the least handler there can be and what Firecracker's example handlers do, all in one run. The page cache is warm or
//! cold, one thread faults or four, and three kinds of work are done ([`Work`]).
//!
//! `WRENN_BENCH_ROUNDS` (3): all ways take turns in each round, and the best of each counts: what else the machine does only
//! ever adds. `WRENN_BENCH_DIR`: where the image lies (the directory for temporary files); cold, it is read from its disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use snap::pack::{Kind, Mode, Pack, pack};
use wrenn_benches::handlers::{Handler, Least};
use wrenn_benches::vmm::{Seen, Work, measure};
use wrenn_benches::{MEMORY, run, write_image};

/// Who answers the faults.
const WAYS: [(&str, Way); 7] = [
    ("least: a page a fault, from memory", Way::Least(Least::FromMemory)),
    ("least: a page a fault, mapped (`on_demand_handler`)", Way::Least(Least::OnDemand)),
    ("least: all at the first fault (`fault_all_handler`)", Way::Least(Least::FaultAll)),
    ("least: a page at a time, loading ahead (the original)", Way::Least(Least::PageByPage)),
    ("wrenn-uffd, prefetch=none", Way::Wrenn("prefetch=none")),
    ("wrenn-uffd, prefetch=recorded", Way::Wrenn("prefetch=recorded")),
    ("wrenn-uffd, prefetch=all", Way::Wrenn("prefetch=all")),
];
/// What is done, by how many threads.
const WORKS: [(Work, usize); 6] = [
    (Work::Scattered, 1),
    (Work::Scattered, 4),
    (Work::Set, 1),
    (Work::Set, 4),
    (Work::All, 1),
    (Work::All, 4),
];

#[derive(Clone, Copy)]
enum Way {
    Least(Least),
    Wrenn(&'static str),
}

fn main() -> ExitCode {
    run(|| {
        let rounds = std::env::var("WRENN_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok());
        Bench::new().compare(rounds.unwrap_or(3));
    })
}

struct Bench {
    home: tempfile::TempDir,
    dir: PathBuf,
    /// The snapshot's one diff file, which holds all of memory where it belongs: a raw file as well.
    image: PathBuf,
}

impl Bench {
    /// Makes a snapshot, and records its working set.
    fn new() -> Self {
        let place = std::env::var_os("WRENN_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let home = tempfile::Builder::new().prefix("bu-").tempdir_in(place).expect("a directory");
        let (raw, dir) = (home.path().join("raw"), home.path().join("snapshot"));
        write_image(&raw);
        let request = Pack { mode: Mode::Inplace, checksums: false, ..Pack::new(raw, &dir, Kind::Full) };
        let mut undo = wire::Undo::default();
        let packed = pack(&request, &mut undo).expect("packed");
        undo.commit();
        let image = dir.join(format!("memfile.{}", packed.header.build));
        let source = format!("source.dir={}", dir.display());
        let bench = Self { home, dir, image };
        let recorded = bench.wrenn(&[&source, "prefetch=none", "record:=true"]);
        measure(&recorded.socket, Work::Set, 1);
        drop(recorded);
        assert!(bench.dir.join("workingset").exists(), "no working set was recorded");
        bench
    }

    fn wrenn(&self, words: &[&str]) -> Handler {
        Handler::wrenn(words, self.home.path())
    }

    fn compare(&self, rounds: usize) {
        for cold in [false, true] {
            let mut best = vec![[None::<Seen>; WORKS.len()]; WAYS.len()];
            for _ in 0..rounds {
                for ((_, way), best) in WAYS.iter().zip(&mut best) {
                    for ((work, threads), best) in WORKS.iter().zip(best) {
                        let seen = self.once(*way, cold, *work, *threads);
                        *best = Some(best.map_or(seen, |best| least(best, seen)));
                    }
                }
            }
            let cache = if cold { "cold" } else { "warm" };
            println!("\n{} MiB, page cache {cache}\n", MEMORY >> 20);
            println!(
                "| | a page, 1 thread: median, µs | p99 | 4 threads: median | p99 | working set of 64 MiB, 1 thread, ms | 4 threads | all of memory, 1 thread, ms | 4 threads |"
            );
            println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
            for ((name, _), best) in WAYS.iter().zip(&best) {
                let cells: Vec<_> =
                    WORKS.iter().zip(best).map(|((work, _), seen)| cell(*work, *seen)).collect();
                println!("| {name} | {} |", cells.join(" | "));
            }
        }
    }

    /// One VMM's life.
    fn once(&self, way: Way, cold: bool, work: Work, threads: usize) -> Seen {
        warm_or_cold(&self.image, cold);
        let handler = match way {
            Way::Least(what) => Handler::least(what, &self.image, self.home.path()),
            Way::Wrenn(prefetch) => self.wrenn(&[&format!("source.dir={}", self.dir.display()), prefetch]),
        };
        measure(&handler.socket, work, threads)
    }
}

fn cell(work: Work, seen: Option<Seen>) -> String {
    let Some(Seen { total, median, p99 }) = seen else { return String::new() };
    match work {
        Work::Scattered => format!("{:.2} | {:.1}", median.as_secs_f64() * 1e6, p99.as_secs_f64() * 1e6),
        _ => format!("{:.0}", total.as_secs_f64() * 1e3),
    }
}

fn least(one: Seen, other: Seen) -> Seen {
    let least = |time: fn(Seen) -> Duration| time(one).min(time(other));
    Seen { total: least(|seen| seen.total), median: least(|seen| seen.median), p99: least(|seen| seen.p99) }
}

/// Brings the image into the page cache, or has the kernel forget it there.
fn warm_or_cold(image: &Path, cold: bool) {
    match cold {
        false => drop(fs::read(image).expect("the image")),
        true => {
            let file = File::open(image).expect("the image");
            file.sync_all().expect("synced");
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("forgotten");
        }
    }
}
