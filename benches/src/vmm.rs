//! The VMM's part: memory whose pages are missing, handed to a server, and touched.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use sys::uffd::{Memory, Uffd};
use wire::{Value, json};

use crate::{MEMORY, PAGE};

pub(crate) const ROLE: &str = "vmm";

/// Which pages are touched, each by one of the threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// 20 000 in no order, one byte of each.
    Scattered,
    /// The working set: 16 384 (64 MiB) in runs of 1 to 32 pages, the runs in an order that is another each time; each
    /// page is read whole.
    Set,
    /// All of memory, in order, each thread its own part; each page is read whole.
    All,
}

impl Work {
    fn word(self) -> &'static str {
        match self {
            Self::Scattered => "scattered",
            Self::Set => "set",
            Self::All => "all",
        }
    }

    fn pages(self, threads: usize) -> Vec<Vec<usize>> {
        let all = MEMORY / PAGE;
        let mut pages: Vec<usize> = match self {
            Self::Scattered => (1..=20_000).map(|index| index * 50_021 % all).collect(),
            Self::Set => set(),
            Self::All => (0..all).collect(),
        };
        if self == Self::Set {
            // Runs stay together: what asks for one page of a structure soon asks for the next.
            let mut random = Random(u64::from(std::process::id()));
            let mut runs: Vec<_> = pages.chunk_by(|one, next| one + 1 == *next).map(<[_]>::to_vec).collect();
            (1..runs.len()).rev().for_each(|at| runs.swap(at, random.below(at + 1)));
            pages = runs.concat();
        }
        pages.chunks(pages.len().div_ceil(threads)).map(<[_]>::to_vec).collect()
    }
}

/// The pages of the working set, in order, the same each time.
fn set() -> Vec<usize> {
    let mut random = Random(7);
    let mut pages = Vec::new();
    while pages.len() < 16_384 {
        let first = random.below(MEMORY / PAGE - 32);
        pages.extend(first..=first + random.below(32));
        pages.sort_unstable();
        pages.dedup();
    }
    pages.truncate(16_384);
    pages
}

/// What the VMM has seen.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// From before it connected until the last page was read.
    pub total: Duration,
    /// To read one page: half of them took no longer.
    pub median: Duration,
    /// Of a hundred, 99 took no longer.
    pub p99: Duration,
}

/// Has another process connect to `socket`, touch its pages and end. What it reads is compared with what
/// [`content`] says.
pub fn measure(socket: &Path, work: Work, threads: usize) -> Seen {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg(ROLE).arg(socket).args([work.word(), &threads.to_string()]).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().expect("the VMM's part");
    assert!(output.status.success(), "the VMM's part: {}", output.status);
    let seen: Value = serde_json::from_slice(&output.stdout).expect("its JSON");
    let time = |name: &str| Duration::from_nanos(seen[name].as_u64().expect("nanoseconds"));
    Seen { total: time("total"), median: time("median"), p99: time("p99") }
}

/// The byte at this offset of the memory image. None is zero.
pub fn content(offset: usize) -> u8 {
    (offset % (1 << 20) * 31 % 251) as u8 + 1
}

pub(crate) fn run(words: &[String]) {
    let threads = words[2].parse().expect("a number of threads");
    let work = [Work::Scattered, Work::Set, Work::All].into_iter().find(|work| work.word() == words[1]);
    let work = work.expect("a kind of work");
    let (pages, whole) = (work.pages(threads), work != Work::Scattered);
    let (memory, uffd) = register();
    let (ready, memory) = (Barrier::new(pages.len() + 1), &memory);
    let (began, mut times) = std::thread::scope(|scope| {
        let threads: Vec<_> = pages
            .iter()
            .map(|pages| {
                scope.spawn(|| {
                    ready.wait();
                    pages.iter().map(|page| touch(memory, *page, whole)).collect::<Vec<_>>()
                })
            })
            .collect();
        let began = Instant::now();
        let _stream = connect(Path::new(&words[0]), memory, &uffd);
        ready.wait();
        let times: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("touched")).collect();
        (began, times)
    });
    let total = began.elapsed();
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_nanos() as u64;
    println!("{}", json!({"total": total.as_nanos() as u64, "median": at(50), "p99": at(99)}));
}

/// Memory whose pages are all missing.
pub fn register() -> (Memory, Uffd) {
    let memory = Memory::map(MEMORY, false).expect("memory");
    let uffd = Uffd::create().expect("a userfaultfd: run as root");
    uffd.register(&memory, 0, memory.len()).expect("registered");
    (memory, uffd)
}

/// Hands it to the server that listens at `socket`. A VMM keeps the connection.
pub fn connect(socket: &Path, memory: &Memory, uffd: &Uffd) -> UnixStream {
    let message = json!([{"base_host_virt_addr": memory.address(), "size": memory.len(), "offset": 0,
                          "page_size": PAGE}]);
    let stream = UnixStream::connect(socket).expect("a server");
    sys::fdpass::send(&stream, message.to_string().as_bytes(), &[uffd.as_fd()]).expect("handed over");
    stream
}

/// Reads a page's first byte, or all of it, and says how long it took.
fn touch(memory: &Memory, page: usize, whole: bool) -> Duration {
    let mut bytes = [0; PAGE];
    let offset = page * PAGE;
    let began = Instant::now();
    match whole {
        true => memory.read(offset, &mut bytes),
        false => bytes[0] = memory.load(offset),
    }
    let took = began.elapsed();
    assert_eq!(bytes[0], content(offset), "page {page}");
    assert!(!whole || bytes[PAGE - 1] == content(offset + PAGE - 1), "page {page}");
    took
}

/// Numbers in no order.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}
