//! A wrenn-vmm of the test's own, and a client of its API.
#![allow(dead_code, reason = "no test program uses all of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};

/// Loads and dumps take their time under emulation.
const LIMIT: Duration = Duration::from_secs(120);

/// One that runs, in a directory of its own. Killed when dropped.
pub struct Vmm {
    child: Child,
    stream: UnixStream,
    pub dir: tempfile::TempDir,
}

/// The program.
pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_wrenn-vmm"))
}

impl Vmm {
    /// Starts one whose API is up. Its output goes to `output` in its directory.
    pub fn start(more: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-vmm-test.").tempdir().unwrap();
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        inotify.add_watch(dir.path(), AddWatchFlags::IN_CREATE).unwrap();
        let output =
            std::fs::File::options().create(true).append(true).open(dir.path().join("output")).unwrap();
        let mut child = program()
            .arg("--api-sock")
            .arg(dir.path().join("api.sock"))
            .args(["--id", "test-vm"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let path = dir.path().join("api.sock");
        let deadline = Instant::now() + LIMIT;
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&path) {
                break stream;
            }
            assert!(child.try_wait().unwrap().is_none(), "it ended: {}", read(&dir.path().join("output")));
            // Bound, listening: both follow at once on the socket's name.
            let left = deadline.saturating_duration_since(Instant::now()).min(Duration::from_millis(100));
            sys::process::readable(&inotify, left).unwrap();
            assert!(Instant::now() < deadline, "it does not listen");
        };
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self { child, stream, dir }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has printed, and the guest's console.
    pub fn output(&self) -> String {
        read(&self.path("output"))
    }

    /// Waits until the output holds `text`.
    pub fn wait_for(&self, text: &str) {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
        inotify.add_watch(&self.path("output"), AddWatchFlags::IN_MODIFY).unwrap();
        let deadline = Instant::now() + LIMIT;
        while !self.output().contains(text) {
            assert!(Instant::now() < deadline, "no {text:?} in: {}", self.output());
            sys::process::readable(&inotify, Duration::from_secs(1)).unwrap();
            let _ = inotify.read_events();
        }
    }

    /// Sends a request.
    pub fn send(&mut self, method: &str, path: &str, body: &Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        write!(self.stream, "{method} {path} HTTP/1.1\r\n{length}\r\n{body}").unwrap();
    }

    /// Sends a request and returns the answer, an error being the fault's message.
    pub fn ask(&mut self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        self.send(method, path, &body);
        let (status, body) = answer(&mut self.stream);
        let value: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        match status {
            200 | 204 => Ok(value),
            400 => Err(value["fault_message"].as_str().unwrap().to_owned()),
            other => panic!("{method} {path}: status {other}"),
        }
    }

    pub fn get(&mut self, path: &str) -> Value {
        self.ask("GET", path, Value::Null).unwrap()
    }

    pub fn put(&mut self, path: &str, body: Value) {
        self.ask("PUT", path, body).unwrap_or_else(|fault| panic!("PUT {path}: {fault}\n{}", self.output()));
    }

    pub fn set(&mut self, state: &str) {
        self.ask("PATCH", "/vm", json!({"state": state})).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let process = sys::process::Process::of_pid(self.pid());
        if let Ok(process) = process {
            assert!(process.wait(LIMIT).unwrap(), "it goes on: {}", self.output());
        }
        self.child.wait().unwrap()
    }

    /// SIGKILL, now.
    pub fn kill(&mut self) {
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

fn answer(stream: &mut UnixStream) -> (u16, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(head) = response.parse(&bytes).unwrap() {
            let length = response.headers.iter().find(|header| header.name == "Content-Length");
            let length =
                length.map_or(0, |header| std::str::from_utf8(header.value).unwrap().parse().unwrap());
            if let Some(body) = bytes.get(head..head + length) {
                return (response.code.unwrap(), body.into());
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).unwrap() {
            0 => panic!("it hung up after {:?}", String::from_utf8_lossy(&bytes)),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
