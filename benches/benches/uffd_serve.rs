//! The page server against the least one can do, in one run on one machine.
//!
//! - one demand fault: `wrenn-uffd` against poll, read, one UFFDIO_COPY from memory, nothing else;
//! - all of memory: `wrenn-uffd` against UFFDIO_COPY in calls of 1 MiB from the same mapped file, and against the
//!   original's way, a page at a time: pread, then UFFDIO_COPY. Both of these do nothing else, in this very process: no
//!   handshake, no events, no demand faults, no discards.
//!
//! This process is the VMM; each handler is a process of its own (this program, started again). Rounds alternate, and the
//! best of each counts: what else the machine does only ever adds.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::mapping::Mapping;
use sys::uffd::{Event, Events, Filled, Memory, Uffd};
use uffd::handshake::{Greeting, Handshake};

const PAGE: usize = 4096;
const MEMORY: usize = 512 << 20;
const TOUCHED: usize = 20_000;
const ROUNDS: usize = 7;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().collect();
    if words[0].ends_with("wrenn-uffd") {
        return uffd::role().unwrap_or_else(|| wire::main(&uffd::TOOL));
    }
    match words.get(1).map(String::as_str) {
        Some("minimal") => minimal(Path::new(&words[2]), Path::new(&words[3])),
        // Other words are those of `cargo bench`.
        _ => compare(),
    }
    ExitCode::SUCCESS
}

/// The whole comparison.
fn compare() {
    let home = tempfile::Builder::new().prefix("bu-").tempdir().unwrap();
    symlink(std::env::current_exe().unwrap(), home.path().join("wrenn-uffd")).unwrap();
    let image = home.path().join("memory");
    let file = File::create(&image).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|index: usize| (index * 31 % 251) as u8 + 1).collect();
    (0..MEMORY >> 20).for_each(|index| file.write_all_at(&block, (index << 20) as u64).unwrap());
    // In the page cache, and in nobody's way.
    file.sync_all().unwrap();
    let bench =
        Bench { home: home.path().to_owned(), image, file: File::open(home.path().join("memory")).unwrap() };

    let (mut minimal, mut served) = (Duration::MAX, Duration::MAX);
    let (mut raw, mut paged, mut loaded) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        minimal = minimal.min(bench.faults(&mut bench.start_minimal()));
        served = served.min(bench.faults(&mut bench.start_server("none")));
    }
    for _ in 0..2 * ROUNDS {
        raw = raw.min(bench.raw());
        loaded = loaded.min(bench.loaded());
        paged = paged.min(bench.page_by_page());
    }
    let per_page = |time: Duration| time.as_secs_f64() * 1e6;
    println!("one demand fault, median of {TOUCHED} pages in no order of {} MiB", MEMORY >> 20);
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

/// A handler and where it listens.
struct Handler {
    child: Child,
    socket: PathBuf,
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bench {
    fn start_minimal(&self) -> Handler {
        let socket = self.home.join("minimal.sock");
        let _ = fs::remove_file(&socket);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("minimal")
            .args([&socket, &self.image])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Handler { child, socket }
    }

    fn start_server(&self, prefetch: &str) -> Handler {
        let socket = self.home.join("uffd.sock");
        let mut child = Command::new(self.home.join("wrenn-uffd"))
            .args(["serve", &format!("prefetch={prefetch}")])
            .arg(format!("source.raw={}", self.image.display()))
            .arg(format!("socket={}", socket.display()))
            .env("PATH", &self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("listening"), "{line}");
        child.stdout = Some(lines.into_inner());
        Handler { child, socket }
    }

    /// How long it takes to touch a page, all of them answered by `handler`: the median over pages in no order.
    fn faults(&self, handler: &mut Handler) -> Duration {
        let (memory, _uffd) = connect(&handler.socket);
        let pages = MEMORY / PAGE;
        let mut page = 12_345;
        // The first ones are the handler's own warm-up.
        for _ in 0..500 {
            page = (page + 7919) % pages;
            memory.load(page * PAGE);
        }
        let mut times: Vec<_> = (0..TOUCHED)
            .map(|_| {
                page = (page + 50_021) % pages;
                let began = Instant::now();
                assert_ne!(memory.load(page * PAGE), 0);
                began.elapsed()
            })
            .collect();
        stop(handler, memory);
        times.sort_unstable();
        times[TOUCHED / 2]
    }

    /// All of memory by the server, from the handshake until the server says so.
    fn loaded(&self) -> Duration {
        let mut handler = self.start_server("all");
        let mut lines = BufReader::new(handler.child.stdout.take().unwrap());
        let began = Instant::now();
        let (memory, _uffd) = connect(&handler.socket);
        let mut line = String::new();
        while !line.contains("prefetched") {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the server ended");
        }
        let took = began.elapsed();
        assert!(line.contains("\"complete\":true"), "{line}");
        assert_eq!(memory.load(MEMORY - 1), (((1 << 20) - 1) * 31 % 251) as u8 + 1);
        stop(&mut handler, memory);
        took
    }

    /// All of memory in calls of 1 MiB, from a mapping that is already populated.
    fn raw(&self) -> Duration {
        let mapping = Mapping::of(&self.file).unwrap();
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
            self.file.read_exact_at(&mut page, at as u64).unwrap();
            let filled = uffd.copy(memory.address() + at as u64, &page);
            assert!(matches!(filled, Filled::Bytes(PAGE)));
        }
        began.elapsed()
    }
}

/// Ends a handler before its VMM's memory goes.
fn stop(handler: &mut Handler, memory: Memory) {
    // A server in the foreground that is told to end would stop this VMM: give the memory up first, then kill both.
    if handler.socket.ends_with("uffd.sock") {
        let control = handler.socket.with_extension("ctl");
        let server = sys::fdpass::peer(&UnixStream::connect(control).unwrap()).unwrap().pid;
        let guardian = nix::unistd::Pid::from_raw(handler.child.id() as i32);
        nix::sys::signal::kill(guardian, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
    }
    let _ = handler.child.kill();
    let _ = handler.child.wait();
    drop(memory);
}

fn register() -> (Memory, Uffd) {
    let memory = Memory::map(MEMORY, false).unwrap();
    let uffd = Uffd::create().expect("a userfaultfd: run as root");
    uffd.register(&memory, 0, memory.len()).unwrap();
    (memory, uffd)
}

fn connect(socket: &Path) -> (Memory, Uffd) {
    let (memory, uffd) = register();
    let message = wire::json!([{"base_host_virt_addr": memory.address(), "size": memory.len(), "offset": 0,
                                "page_size": PAGE}]);
    let stream = UnixStream::connect(socket).unwrap();
    sys::fdpass::send(&stream, message.to_string().as_bytes(), &[uffd.as_fd()]).unwrap();
    std::mem::forget(stream);
    (memory, uffd)
}

/// The least a handler can do, as a C program would: pages in memory, poll, read, one copy. No discards, no second thought.
fn minimal(socket: &Path, image: &Path) {
    let pages = fs::read(image).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    println!("listening");
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut handshake = Handshake::new(stream, Duration::from_secs(10)).unwrap();
    let (regions, uffd) = loop {
        sys::process::readable(handshake.stream(), Duration::from_secs(10)).unwrap();
        match handshake.advance().unwrap() {
            Greeting::Waiting => {}
            Greeting::Done(regions, uffd) => break (regions, uffd),
            Greeting::Nothing => return,
        }
    };
    let base = regions[0].address;
    let mut events = Events::new();
    loop {
        poll(&mut [PollFd::new(uffd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        let drained = uffd.drain(&mut events, |event| {
            if let Event::Fault { address, .. } = event {
                let at = (address - base) as usize / PAGE * PAGE;
                uffd.copy(base + at as u64, &pages[at..at + PAGE]);
            }
        });
        drained.unwrap();
    }
}
