//! The program as a user runs it, and VMMs for it to serve.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

mod vmm;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sys::process::Process;

pub use storm::list;
pub use vmm::{Vmm, connect, greet, play, registered};
use wrenn_tests::pages;
pub use wrenn_tests::pages::{PAGE, content};

mod storm;

/// Longer than this nothing takes, however slow the machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Roots and an image of a test's own. Whatever server is left when it goes is stopped.
pub struct Bench {
    dir: tempfile::TempDir,
    pub pages: usize,
}

impl Bench {
    pub fn new(pages: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("wu-").tempdir().unwrap();
        let bench = Self { dir, pages };
        pages::write(&File::create(bench.raw()).unwrap(), pages);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn raw(&self) -> PathBuf {
        self.path("memory")
    }

    /// `<run>/<id>` of the sandbox `vm`.
    pub fn run(&self, name: &str) -> PathBuf {
        self.path("run").join("vm").join(name)
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn-uffd"));
        command.args(words).current_dir(self.dir.path());
        command.env("WRENN_ROOT", self.path("root")).env("WRENN_RUN", self.path("run"));
        command
    }

    /// Runs a verb to its end.
    pub fn verb(&self, words: &[&str]) -> Reply {
        Reply(self.command(words).stdin(Stdio::null()).output().unwrap())
    }

    /// A detached server for the sandbox `vm`, over the raw image.
    pub fn detached(&self, more: &[&str]) -> Value {
        let mut words = vec!["serve", "id=vm", "source.raw=memory", "detach:=true"];
        words.extend(more);
        self.verb(&words).success()
    }

    /// The verb on a document that holds this `uffd` section.
    pub fn on(&self, verb: &str, document: &Value, more: &[&str]) -> Reply {
        let mut words = vec![verb, "-"];
        words.extend(more);
        let mut child = self
            .command(&words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(document.to_string().as_bytes()).unwrap();
        Reply(child.wait_with_output().unwrap())
    }

    /// What `stats` says of the server of `vm`.
    pub fn stats(&self) -> Value {
        self.verb(&["stats", "id=vm"]).success()["stats"].clone()
    }

    /// Waits until everything is loaded: the server answers each question between two batches.
    pub fn await_complete(&self) {
        let deadline = std::time::Instant::now() + LIMIT;
        while self.stats()["complete"] != true {
            assert!(std::time::Instant::now() < deadline, "never complete");
        }
    }

    /// The server that serves now.
    pub fn server(&self) -> Process {
        Process::of_pid(self.stats()["server_pid"].as_i64().unwrap() as i32).unwrap()
    }

    /// The ranges in the file that `stats` wrote, in pages.
    pub fn removed(&self) -> Vec<(usize, usize)> {
        ranges(&self.run("uffd.removed"))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.verb(&["stop", "id=vm", "force:=true"]);
        if std::thread::panicking() {
            eprintln!("log: {}", fs::read_to_string(self.run("uffd.log")).unwrap_or_default());
        }
    }
}

/// The ranges in a list of discards, in pages.
pub fn ranges(list: &Path) -> Vec<(usize, usize)> {
    let value: Value = serde_json::from_slice(&fs::read(list).unwrap()).unwrap();
    let number = |value: &Value| value.as_u64().unwrap() as usize / PAGE;
    value["ranges"].as_array().unwrap().iter().map(|pair| (number(&pair[0]), number(&pair[1]))).collect()
}

/// What a verb left.
pub struct Reply(Output);

impl Reply {
    /// What went to stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub fn status(&self) -> i32 {
        self.0.status.code().unwrap_or_else(|| panic!("{}", self.0.status))
    }

    /// Its lines.
    pub fn lines(&self) -> Vec<Value> {
        String::from_utf8_lossy(&self.0.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect()
    }

    pub fn success(self) -> Value {
        let log = String::from_utf8_lossy(&self.0.stderr).into_owned();
        assert_eq!(self.status(), 0, "{log} {}", String::from_utf8_lossy(&self.0.stdout));
        self.lines().pop().unwrap()
    }

    /// Its error, which must be of this kind and code.
    pub fn error(self, kind: &str, code: &str) -> Value {
        let error = self.lines().pop().unwrap_or_default()["error"].clone();
        assert_eq!((&error["kind"], &error["code"]), (&json!(kind), &json!(code)), "{error}");
        error
    }
}

/// A server in the foreground, and its events.
pub struct Foreground {
    pub child: Child,
    lines: BufReader<ChildStdout>,
}

impl Foreground {
    /// Starts one and waits until it listens.
    pub fn start(bench: &Bench, more: &[&str]) -> Self {
        Self::of(bench, &[&["serve", "id=vm", "source.raw=memory"], more].concat())
    }

    /// Starts one by this command line.
    pub fn of(bench: &Bench, words: &[&str]) -> Self {
        Self::from(bench.command(words))
    }
}

impl From<Command> for Foreground {
    fn from(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut server = Self { child, lines };
        assert_eq!(server.event()["event"], "listening");
        server
    }
}

impl Foreground {
    /// The next event.
    pub fn event(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not an event: {line:?}"))
    }

    /// The next event of that name; others before it are passed over.
    pub fn until(&mut self, name: &str) -> Value {
        loop {
            let event = self.event();
            assert!(!event["event"].is_null(), "{event}");
            if event["event"] == name {
                return event;
            }
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// A service, and a VMM that has 20 of its 64 pages.
pub struct Serving {
    pub bench: Bench,
    pub document: Value,
    pub server: Process,
    pub guardian: Process,
    pub vmm: Vmm,
}

/// Begins it, by these words of `serve` beside `prefetch=none`.
pub fn serving(more: &[&str]) -> Serving {
    let bench = Bench::new(64);
    let document = bench.detached(&[&["prefetch=none"], more].concat());
    let (server, guardian) = (server_of(&document), service_of(&document));
    let mut vmm = Vmm::start(&bench.run("uffd.sock"), 64);
    assert_eq!(vmm.ask("check 0 20 image"), "same");
    Serving { bench, document, server, guardian, vmm }
}

/// The server that works for the service of a `uffd` section: its guardian's child.
pub fn server_of(document: &Value) -> Process {
    let guardian = service_of(document);
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let child = pids
            .filter_map(|pid| Process::of_pid(pid).ok())
            .find(|process| parent_pid(process).is_some_and(|parent| parent == guardian.pid));
        if let Some(child) = child {
            return child;
        }
        assert!(std::time::Instant::now() < deadline, "it has no server");
    }
}

/// The process that a `uffd` section names.
pub fn service_of(document: &Value) -> Process {
    let section = &document["uffd"];
    Process {
        pid: section["pid"].as_i64().unwrap() as i32,
        start_time: section["start_time"].as_u64().unwrap(),
        boot_id: section["boot_id"].as_str().unwrap().to_owned(),
    }
}

/// The parent of a process.
pub fn parent_of(process: &Process) -> Process {
    Process::of_pid(parent_pid(process).unwrap()).unwrap()
}

fn parent_pid(process: &Process) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?;
    stat[stat.rfind(')')? + 2..].split(' ').nth(1)?.parse().ok()
}

pub fn await_end(process: &Process) {
    assert!(process.wait(LIMIT).unwrap(), "pid {} goes on", process.pid);
}

/// A snapshot directory over this many pages of [`content`], in one diff file; its header is written by hand:
/// version, block size, size, generation, build, base build; then offset, length, build, storage
/// offset.
pub fn snapshot(dir: &Path, pages: usize) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let build = [0x11; 16];
    let bytes = (pages * PAGE) as u64;
    let mut header = Vec::new();
    for number in [1, PAGE as u64, bytes, 0] {
        header.extend(number.to_le_bytes());
    }
    header.extend([build, build].concat());
    header.extend([0u64.to_le_bytes(), bytes.to_le_bytes()].concat());
    header.extend(build);
    header.extend(0u64.to_le_bytes());
    fs::write(dir.join("memfile.header"), header).unwrap();
    let diff = dir.join("memfile.11111111-1111-1111-1111-111111111111");
    fs::write(&diff, (0..pages).flat_map(content).collect::<Vec<_>>()).unwrap();
    diff
}
