//! A VMM in small: registers memory and hands it over as Firecracker does. Either in the test's own process, or in one of
//! its own that a test can kill: the test binary, started again.

use std::io::{BufRead, BufReader, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use serde_json::json;
use sys::fdpass;
use sys::process::Process;
use sys::uffd::{Memory, Uffd};

use super::{PAGE, content};

/// Maps and registers memory and says so at the socket: the VMM's side of the handshake. The userfaultfd stays open with
/// the VMM.
pub fn connect(socket: &Path, pages: usize) -> (Memory, Uffd) {
    let (memory, uffd, message) = registered(pages);
    greet(socket, &message, Some(&uffd));
    (memory, uffd)
}

/// The first part of it, with what is to be said.
pub fn registered(pages: usize) -> (Memory, Uffd, Vec<u8>) {
    let memory = Memory::map(pages * PAGE, false).unwrap();
    let uffd = Uffd::create().unwrap();
    uffd.register(&memory, 0, memory.len()).unwrap();
    let message = json!([{"base_host_virt_addr": memory.address(), "size": memory.len(), "offset": 0,
                          "page_size": PAGE, "page_size_kib": PAGE}]);
    (memory, uffd, message.to_string().into_bytes())
}

/// Sends a message, whatever it is, and keeps the connection for ever as Firecracker does.
pub fn greet(socket: &Path, message: &[u8], uffd: Option<&Uffd>) {
    say(UnixStream::connect(socket).unwrap(), message, uffd);
}

fn say(stream: UnixStream, message: &[u8], uffd: Option<&Uffd>) {
    let fds: Vec<_> = uffd.iter().map(AsFd::as_fd).collect();
    assert_eq!(fdpass::send(&stream, message, &fds).unwrap(), message.len());
    std::mem::forget(stream);
}

/// A VMM in a process of its own.
pub struct Vmm {
    pub child: Child,
    pub process: Process,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Vmm {
    /// Starts one with so many pages. The test binary must have an ignored test `vmm` that calls [`play`].
    pub fn start(socket: &Path, pages: usize) -> Self {
        let mut vmm = Self::begin(socket, pages);
        assert_eq!(vmm.answer(), "connected");
        vmm
    }

    /// The same, and does not wait until it has handed itself over: it may be stopped for that.
    pub fn begin(socket: &Path, pages: usize) -> Self {
        Self::spawn(socket, pages, &[])
    }

    fn spawn(socket: &Path, pages: usize, more: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "vmm", "--ignored", "--nocapture", "--test-threads=1"])
            .env("UFFD_SOCKET", socket)
            .env("UFFD_PAGES", pages.to_string())
            .envs(more.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let process = Process::of_pid(child.id() as i32).unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, process, stdin, lines: BufReader::new(stdout) }
    }

    /// Starts one that has connected and says nothing until it is told anything.
    pub fn hesitating(socket: &Path, pages: usize) -> Self {
        let mut vmm = Self::spawn(socket, pages, &[("UFFD_HESITATES", "1")]);
        assert_eq!(vmm.answer(), "hesitates");
        vmm
    }

    /// Tells it to do something, see [`play`].
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// Its next answer.
    pub fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the VMM has ended");
            // The test harness has its own lines.
            if let Some(answer) = line.split("vmm: ").nth(1) {
                return answer.trim().to_owned();
            }
        }
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    /// Ends its storm, and gives the pages ever discarded. Every page must be as its model says.
    pub fn calm(&mut self) -> String {
        self.tell("calm");
        let mut answers = [self.answer(), self.answer()];
        answers.sort();
        assert_eq!(answers[0], "calming");
        answers[1].strip_prefix("exact ").unwrap_or_else(|| panic!("{}", answers[1])).to_owned()
    }

    /// Waits until somebody has stopped it. What it was asked before it has not answered.
    pub fn await_stop(mut self) {
        let mut said = String::new();
        self.lines.read_to_string(&mut said).unwrap();
        assert!(!said.contains("vmm: "), "it went on: {said}");
        assert_eq!(self.child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }

    /// Ends it by SIGKILL, and collects it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part of the VMM. Each line is a thread of its own, so that one that waits for a page holds up no other:
/// `check FIRST END image|zero`, `discard FIRST PAGES`, `touch PAGE`, `probe PAGE`, `storm SEED` until `calm` (see [`super::storm`]).
pub fn play() {
    let socket = std::env::var_os("UFFD_SOCKET").expect("a part that other tests start");
    let pages: usize = std::env::var("UFFD_PAGES").unwrap().parse().unwrap();
    let (memory, uffd, message) = registered(pages);
    let stream = UnixStream::connect(socket).unwrap();
    if std::env::var_os("UFFD_HESITATES").is_some() {
        println!("vmm: hesitates");
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
    say(stream, &message, Some(&uffd));
    let memory = Arc::new(memory);
    println!("vmm: connected");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let memory = memory.clone();
        std::thread::spawn(move || println!("vmm: {}", act(&memory, &line)));
    }
    std::process::exit(0);
}

fn act(memory: &Memory, line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let number = |index: usize| words[index].parse::<usize>().unwrap();
    match words[0] {
        "storm" => super::storm::storm(memory, number(1) as u64),
        "calm" => super::storm::calm(),
        "probe" => probe(memory, number(1)).into(),
        "touch" => format!("touched {}", memory.load(number(1) * PAGE)),
        "discard" => format!("{:?}", memory.discard(number(1) * PAGE, number(2) * PAGE)),
        _ => {
            let expected = |page| if words[3] == "image" { content(page) } else { [0; PAGE] };
            let mut bytes = [0; PAGE];
            let wrong = (number(1)..number(2)).find(|&page| {
                memory.read(page * PAGE, &mut bytes);
                bytes != expected(page)
            });
            wrong.map_or("same".into(), |page| format!("page {page} differs"))
        }
    }
}

/// Has the kernel read a page, to which SIGBUS is an error.
fn probe(memory: &Memory, page: usize) -> &'static str {
    let mut bytes = [0; PAGE];
    let remote = [RemoteIoVec { base: memory.address() as usize + page * PAGE, len: PAGE }];
    match process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(&mut bytes)], &remote) {
        Ok(PAGE) if bytes == content(page) => "image",
        Ok(PAGE) => "something else",
        _ => "unreadable",
    }
}
