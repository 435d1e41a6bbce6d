//! `wrenn serve`, and the agent of a guest that is this very machine.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_tests::{Program, Roots, Value, json, program};

use crate::client::{Client, Response};

/// A running server, ended with the test.
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: Option<ChildStderr>,
    pub socket: PathBuf,
}

/// How a server has ended.
pub struct Ended {
    pub status: ExitStatus,
    pub events: Vec<Value>,
    pub log: String,
}

impl Server {
    /// Starts `wrenn` with the arguments `serve …`, and waits until it listens.
    pub fn start(mut wrenn: Program) -> Self {
        let command = wrenn.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("wrenn serve");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let stderr = child.stderr.take();
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let event: Value = serde_json::from_str(&line).expect("an event");
        assert_eq!(event["event"], "listening", "{line}");
        let socket = PathBuf::from(event["socket"].as_str().expect("a path"));
        Self { child, stdout, stderr, socket }
    }

    pub fn on(roots: &Roots) -> Self {
        Self::start(roots.program("wrenn").args(["serve"]))
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    /// One request on a connection of its own.
    pub fn call(&self, method: &str, target: &str, body: &Value) -> Response {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.client().call(method, target, body.as_bytes())
    }

    pub fn get(&self, target: &str) -> Response {
        self.call("GET", target, &Value::Null)
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a running server");
    }

    /// Waits until it has ended.
    pub fn ended(mut self) -> Ended {
        let (mut text, mut log) = (String::new(), String::new());
        self.stdout.read_to_string(&mut text).unwrap();
        self.stderr.take().expect("the log").read_to_string(&mut log).unwrap();
        let status = self.child.wait().unwrap();
        let events = text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
        Ended { status, events, log }
    }

    /// Tells it to end, and sees that it does so in order.
    pub fn stop(self) -> Ended {
        self.signal(Signal::SIGTERM);
        self.stopped()
    }

    /// Sees that it ends in order: it has been told to.
    pub fn stopped(self) -> Ended {
        let socket = self.socket.clone();
        let ended = self.ended();
        assert_eq!(ended.status.signal(), Some(Signal::SIGTERM as i32), "{}", ended.log);
        assert_eq!(ended.events.last().map(|event| &event["event"]), Some(&json!("closed")));
        assert!(!socket.exists(), "the socket is gone");
        ended
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running agent, ended with the test.
pub struct Agent {
    child: Child,
    pub url: String,
}

impl Agent {
    pub fn start() -> Self {
        let mut command = Command::new(program::path("wrenn-envd"));
        command.args(["--port", "0"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("wrenn-envd");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let address = line.split_whitespace().last().expect("an address");
        Self { url: format!("http://{address}"), child }
    }

    /// Writes a sandbox as a document alone: it is said to run, as the agent's own process, and the agent is its guest.
    pub fn as_sandbox(&self, roots: &Roots, id: &str) {
        let mut document = self.document(id, "running");
        let vm = sys::process::Process::of_pid(self.child.id() as i32).expect("the agent");
        document["vm"] = json!({"pid": vm.pid, "start_time": vm.start_time, "boot_id": vm.boot_id});
        write(roots, &document);
    }

    fn document(&self, id: &str, state: &str) -> Value {
        json!({"id": id, "state": state, "spec": {"user": "root"}, "guest": {"url": self.url}})
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a sandbox's document as the supervisor does: renamed into place.
pub fn write(roots: &Roots, document: &Value) {
    let dir = roots.root().join("sandboxes").join(document["id"].as_str().unwrap());
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("sandbox.new"), document.to_string()).unwrap();
    fs::rename(dir.join("sandbox.new"), dir.join("sandbox.json")).unwrap();
}

/// A sandbox as a document alone.
pub fn write_state(roots: &Roots, id: &str, state: &str) {
    write(roots, &json!({"id": id, "state": state}));
}
