//! The page server against the least one can do, in one run on one machine.
//!
//! - one demand fault: `wrenn-uffd` against poll, read, one UFFDIO_COPY from memory, nothing else;
//! - all of memory: `wrenn-uffd` against UFFDIO_COPY in calls of 1 MiB from the same mapped file, and against the
//!   original's way, a page at a time: pread, then UFFDIO_COPY. Both of these do nothing else, in this very process: no
//!   handshake, no events, no demand faults, no discards.
//!
//! Rounds alternate, and the best of each counts: what else the machine does only ever adds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sys::mapping::Mapping;
use sys::uffd::Filled;
use wrenn_benches::handlers::{Handler, Least};
use wrenn_benches::vmm::{Work, connect, content, measure, register};
use wrenn_benches::{MEMORY, PAGE, run, write_image};

const ROUNDS: usize = 7;

fn main() -> ExitCode {
    run(compare)
}

/// The whole comparison.
fn compare() {
    let home = tempfile::Builder::new().prefix("bu-").tempdir().expect("a directory");
    let image = home.path().join("memory");
    write_image(&image);
    let bench = Bench { home: home.path().to_owned(), file: File::open(&image).expect("the image"), image };

    let (mut minimal, mut served) = (Duration::MAX, Duration::MAX);
    let (mut raw, mut paged, mut loaded) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        let least = Handler::least(Least::FromMemory, &bench.image, &bench.home);
        minimal = minimal.min(measure(&least.socket, Work::Scattered, 1).median);
        let server = bench.start("prefetch=none");
        served = served.min(measure(&server.socket, Work::Scattered, 1).median);
    }
    for _ in 0..2 * ROUNDS {
        raw = raw.min(bench.raw());
        loaded = loaded.min(bench.loaded());
        paged = paged.min(bench.page_by_page());
    }
    let per_page = |time: Duration| time.as_secs_f64() * 1e6;
    println!("one demand fault, median of 20000 pages in no order of {} MiB", MEMORY >> 20);
    println!("  poll, read, copy from memory   {:8.2} us", per_page(minimal));
    println!("  wrenn-uffd                     {:8.2} us", per_page(served));
    println!(
        "  ratio                          {:8.2}    (at most 1.2)",
        per_page(served) / per_page(minimal)
    );
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!("all of {} MiB", MEMORY >> 20);
    println!("  UFFDIO_COPY, 1 MiB a call      {:8.1} ms", ms(raw));
    println!("  a page at a time               {:8.1} ms", ms(paged));
    println!("  wrenn-uffd                     {:8.1} ms", ms(loaded));
    println!("  share of raw                   {:8.2}    (at least 0.8)", ms(raw) / ms(loaded));
    println!("  times a page at a time         {:8.2}    (at least 2)", ms(paged) / ms(loaded));
}

struct Bench {
    home: PathBuf,
    image: PathBuf,
    file: File,
}

impl Bench {
    fn start(&self, prefetch: &str) -> Handler {
        Handler::wrenn(&[&format!("source.raw={}", self.image.display()), prefetch], &self.home)
    }

    /// All of memory by the server, from the handshake until the server says so.
    fn loaded(&self) -> Duration {
        let mut server = self.start("prefetch=all");
        let (memory, uffd) = register();
        let began = Instant::now();
        let _stream = connect(&server.socket, &memory, &uffd);
        let line = server.said("prefetched");
        let took = began.elapsed();
        assert!(line.contains("\"complete\":true"), "{line}");
        assert_eq!(memory.load(MEMORY - 1), content(MEMORY - 1));
        // It has given this process all of its memory: told to end, it lets it live.
        drop(server);
        took
    }

    /// All of memory in calls of 1 MiB, from a mapping that is already populated.
    fn raw(&self) -> Duration {
        let mapping = Mapping::of(&self.file).expect("mapped");
        sys::uffd::populate(&mapping);
        let (memory, uffd) = register();
        let began = Instant::now();
        for at in (0..MEMORY).step_by(1 << 20) {
            let filled = uffd.copy(memory.address() + at as u64, &mapping[at..at + (1 << 20)]);
            assert!(matches!(filled, Filled::Bytes(count) if count == 1 << 20));
        }
        began.elapsed()
    }

    /// All of memory as the original's prefetch does: read a page, copy a page.
    fn page_by_page(&self) -> Duration {
        let (memory, uffd) = register();
        let mut page = [0; PAGE];
        let began = Instant::now();
        for at in (0..MEMORY).step_by(PAGE) {
            self.file.read_exact_at(&mut page, at as u64).expect("read");
            let filled = uffd.copy(memory.address() + at as u64, &page);
            assert!(matches!(filled, Filled::Bytes(PAGE)));
        }
        began.elapsed()
    }
}
