//! What answers a VMM's page faults: `wrenn-uffd`, and some that do as little as can be for what they do.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::mapping::Mapping;
use sys::uffd::{Event, Events, Filled, Uffd};
use uffd::Region;
use uffd::handshake::{Greeting, Handshake};

use crate::PAGE;

pub(crate) const ROLE: &str = "handler";
pub(crate) const PROGRAM: &str = "wrenn-uffd";

/// The least handlers: one thread, poll, read, one UFFDIO_COPY. No discards, no second thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Least {
    /// One page a fault, from memory that holds the whole image.
    FromMemory,
    /// One page a fault, from the mapped file: what Firecracker's example `on_demand_handler` does.
    OnDemand,
    /// Everything at the first fault, from the mapped file: what Firecracker's example `fault_all_handler` does.
    FaultAll,
    /// One page a fault, read from the file, while another thread loads all pages so, one by one: the original's prefetch,
    /// without its runtime.
    PageByPage,
}

impl Least {
    const ALL: [Self; 4] = [Self::FromMemory, Self::OnDemand, Self::FaultAll, Self::PageByPage];

    fn word(self) -> &'static str {
        match self {
            Self::FromMemory => "from-memory",
            Self::OnDemand => "on-demand",
            Self::FaultAll => "fault-all",
            Self::PageByPage => "page-by-page",
        }
    }
}

/// A handler that listens. It ends when its VMM does.
pub struct Handler {
    child: Child,
    /// Where the VMM connects.
    pub socket: PathBuf,
    /// Its first line.
    pub listening: String,
    lines: BufReader<ChildStdout>,
}

impl Handler {
    /// Starts one of the least handlers; `home` is a directory for its socket.
    pub fn least(what: Least, image: &Path, home: &Path) -> Self {
        let socket = home.join("least.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args([ROLE, what.word()]).args([&socket, image]);
        Self::start(command, socket)
    }

    /// Starts `wrenn-uffd serve` with these words; `home` is a directory for its socket.
    pub fn wrenn(words: &[&str], home: &Path) -> Self {
        let socket = home.join("uffd.sock");
        let program = home.join(PROGRAM);
        if !program.exists() {
            symlink(std::env::current_exe().expect("this program"), &program).expect("a link");
        }
        let mut command = Command::new(&program);
        command.arg("serve").args(words).arg(format!("socket={}", socket.display())).env("PATH", home);
        Self::start(command, socket)
    }

    fn start(mut command: Command, socket: PathBuf) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a handler");
        let lines = BufReader::new(child.stdout.take().expect("its stdout"));
        let mut handler = Self { child, socket, listening: String::new(), lines };
        handler.listening = handler.said("listening");
        handler
    }

    /// Waits until it says this, and returns the line.
    pub fn said(&mut self, what: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).expect("its events"), 0, "it ended before {what:?}");
            if line.contains(what) {
                return line;
            }
        }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        // Its VMM is gone, or never came.
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

pub(crate) fn run(words: &[String]) {
    let what = Least::ALL.into_iter().find(|least| least.word() == words[0]).expect("a handler's name");
    let file = File::open(&words[2]).expect("the image");
    let mapping = Mapping::of(&file).expect("a mapping");
    let owned = (what == Least::FromMemory).then(|| mapping.to_vec());
    let pages: &[u8] = owned.as_deref().unwrap_or(&mapping);
    let listener = UnixListener::bind(&words[1]).expect("a socket");
    println!("listening");
    let (stream, _) = listener.accept().expect("a VMM");
    stream.set_nonblocking(true).expect("a socket that does not block");
    let mut handshake = Handshake::new(stream, Duration::from_secs(10)).expect("a peer");
    let (regions, uffd) = loop {
        sys::process::readable(handshake.stream(), Duration::from_secs(10)).expect("a handshake");
        match handshake.advance().expect("a handshake") {
            Greeting::Waiting => {}
            Greeting::Done(regions, uffd) => break (regions, uffd),
            Greeting::Nothing => return,
        }
    };
    let (file, region, uffd) = (&file, &regions[0], &uffd);
    std::thread::scope(|scope| {
        if what == Least::PageByPage {
            scope.spawn(move || {
                let all = (0..region.size).step_by(PAGE);
                all.map(|at| one_page(file, region, uffd, at))
                    .take_while(|filled| !matches!(filled, Filled::Gone))
                    .count()
            });
        }
        serve(what, file, region, uffd, pages);
    });
}

/// Reads a page and fills it in.
fn one_page(file: &File, region: &Region, uffd: &Uffd, at: u64) -> Filled {
    let mut page = [0; PAGE];
    file.read_exact_at(&mut page, at).expect("a page of the image");
    uffd.copy(region.address + at, &page)
}

/// Answers until the VMM is gone.
fn serve(what: Least, file: &File, region: &Region, uffd: &Uffd, pages: &[u8]) {
    let mut events = Events::new();
    let mut gone = false;
    while !gone {
        poll(&mut [PollFd::new(uffd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).expect("a poll");
        let drained = uffd.drain(&mut events, |event| {
            let Event::Fault { address, .. } = event else { return };
            let at = (address - region.address) as usize / PAGE * PAGE;
            let filled = match what {
                Least::FaultAll => uffd.copy(region.address, pages),
                Least::PageByPage => one_page(file, region, uffd, at as u64),
                _ => uffd.copy(region.address + at as u64, &pages[at..at + PAGE]),
            };
            match filled {
                Filled::Exists => drop(uffd.wake(region.address, region.size)),
                Filled::Gone => gone = true,
                _ => {}
            }
        });
        // The kernel says so when the process whose memory it was has ended.
        gone |= drained.is_err();
    }
}
