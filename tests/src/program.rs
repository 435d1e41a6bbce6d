//! One run of one program.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kernel::Marks;

/// Far more than anything takes, also under emulation: past it a program hangs.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Where a built program is: in `WRENN_BIN_DIR`, else beside this test's own directory (`target/PROFILE/`).
///
/// # Panics
/// When it is not built.
pub fn path(name: &str) -> PathBuf {
    let dir = std::env::var_os("WRENN_BIN_DIR").map_or_else(
        || {
            let test = std::env::current_exe().expect("the test's own path");
            test.ancestors().nth(2).expect("target/PROFILE/deps/test").to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}

/// A pair of roots that the programs are run with.
#[derive(Debug)]
pub struct Roots {
    dir: tempfile::TempDir,
}

impl Roots {
    /// Two empty roots.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn new() -> Self {
        // Short: a socket's whole path may have 107 bytes.
        Self { dir: tempfile::Builder::new().prefix("wt-").tempdir().expect("a temporary directory") }
    }

    /// `WRENN_ROOT`.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// `WRENN_RUN`.
    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The directory of both, free for a test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What tells their objects in the kernel from those of others; the tag is 48 bits of the FNV-1a hash of the root's path
    /// (docs/contract.md).
    pub fn marks(&self) -> Marks {
        let root = self.root().canonicalize().unwrap_or_else(|_| self.root());
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
        Marks { dir: self.dir().to_owned(), tag: format!("{:012x}", hash >> 16), slots: BTreeSet::new() }
    }

    /// A program, to run with these roots.
    pub fn program(&self, name: &str) -> Program {
        let mut command = Command::new(path(name));
        command.env("WRENN_ROOT", self.root()).env("WRENN_RUN", self.run());
        Program { name: name.to_owned(), command, stdin: Vec::new(), limit: limit() }
    }
}

impl Default for Roots {
    fn default() -> Self {
        Self::new()
    }
}

/// A program about to be run.
#[derive(Debug)]
pub struct Program {
    name: String,
    command: Command,
    stdin: Vec<u8>,
    limit: Duration,
}

/// How a program ended.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub line: String,
    /// Its exit status; `None` when a signal ended it.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it logged.
    pub stderr: String,
}

impl Program {
    /// With these arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// With this on its stdin.
    #[must_use]
    pub fn stdin(mut self, text: impl AsRef<[u8]>) -> Self {
        self.stdin = text.as_ref().to_owned();
        self
    }

    /// With this in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// The command itself, for what the other methods do not say.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs it to its end **and to the end of both its pipes**: what it leaves running must hold neither.
    ///
    /// # Panics
    /// When it cannot be started, or is not done after [`LIMIT`] (`WRENN_TEST_LIMIT_S` asks for another, in seconds).
    pub fn run(mut self) -> Output {
        let args: Vec<_> = self.command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let line = format!("{} {}", self.name, args.join(" "));
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut stdin = child.stdin.take().expect("piped");
        let input = std::mem::take(&mut self.stdin);
        // A program may end without reading its stdin.
        std::thread::spawn(move || stdin.write_all(&input));
        let stdout = reader(child.stdout.take().expect("piped"));
        let stderr = reader(child.stderr.take().expect("piped"));
        let deadline = Instant::now() + self.limit;
        let left = || deadline.saturating_duration_since(Instant::now());
        let out = stdout.recv_timeout(left());
        let err = stderr.recv_timeout(left());
        if out.is_err() || err.is_err() {
            give_up(&line, &mut child, self.limit);
        }
        let status = child.wait().unwrap_or_else(|error| panic!("{line}: {error}"));
        let stderr = String::from_utf8_lossy(&err.unwrap_or_default()).into_owned();
        Output { line, status: status.code(), stdout: out.unwrap_or_default(), stderr }
    }

    /// Runs it with a stdout that nobody reads.
    ///
    /// # Panics
    /// As [`Program::run`].
    pub fn run_unread(mut self) -> Option<i32> {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        self.command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::null());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let mut stdin = child.stdin.take().expect("piped");
        let _ = stdin.write_all(&self.stdin);
        drop(stdin);
        child.wait().expect("its status").code()
    }
}

fn limit() -> Duration {
    let asked = std::env::var("WRENN_TEST_LIMIT_S").ok();
    asked.map_or(LIMIT, |text| Duration::from_secs(text.parse().expect("WRENN_TEST_LIMIT_S: a number")))
}

fn reader(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        sender.send(bytes)
    });
    receiver
}

fn give_up(line: &str, child: &mut Child, limit: Duration) -> ! {
    let ended = child.try_wait().ok().flatten();
    let _ = child.kill();
    match ended {
        Some(status) => panic!("{line}: ended ({status}), but something it left running holds its pipes"),
        None => panic!("{line}: did not end in {limit:?}"),
    }
}

impl Output {
    /// The same, once it has succeeded.
    ///
    /// # Panics
    /// When its status is not 0.
    pub fn success(self) -> Self {
        self.status_is(0)
    }

    /// The same, once its exit status has been found to be this.
    ///
    /// # Panics
    /// When it is another.
    pub fn status_is(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            Some(status),
            "{}\nstdout: {}\nstderr: {}",
            self.line,
            self.text(),
            self.stderr
        );
        self
    }

    /// What it printed, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The replies: every line is one JSON value.
    ///
    /// # Panics
    /// When a line is not.
    pub fn replies(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|reply| {
                serde_json::from_str(reply)
                    .unwrap_or_else(|error| panic!("{}: not a line of JSON: {error}: {reply:?}", self.line))
            })
            .collect()
    }

    /// The only reply.
    ///
    /// # Panics
    /// When there is none or more than one.
    pub fn reply(&self) -> Value {
        let mut replies = self.replies();
        assert_eq!(replies.len(), 1, "{}: one reply, not {replies:?}\nstderr: {}", self.line, self.stderr);
        replies.remove(0)
    }
}
