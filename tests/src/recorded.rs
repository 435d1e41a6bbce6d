//! A recorded conversation with Cloud Hypervisor v53, and what it would answer by that.
//!
//! `golden/cloud-hypervisor.jsonl` holds one request and its reply a line, as the real one gave it to wrenn-launch: `in`
//! is what the VM was doing (`*`: whatever it did), `then` what it does afterwards if that changed. Device trees are left
//! out; a pid is 1, and a directory that is handed over is `/proc/PID/fd/N`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::{Value, json};

const RECORDING: &str = include_str!("../golden/cloud-hypervisor.jsonl");

/// A VMM of the recording.
#[derive(Debug)]
pub struct Recorded {
    lines: Vec<Value>,
    /// What the VM is doing.
    pub state: String,
    /// The step whose reply the next request is to get that it answers: a failure, mostly. Without it a request gets the
    /// first reply that was recorded.
    pub order: Option<String>,
    /// Requests that are not in the recording: method, path, body, and what the VM was doing.
    pub unknown: Vec<Value>,
}

impl Recorded {
    /// One that was just started.
    ///
    /// # Panics
    /// When the recording is none.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let lines =
            RECORDING.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        Self { lines, state: "none".into(), order: None, unknown: Vec::new() }
    }

    /// What Cloud Hypervisor answers. A request that it was never sent in the recording is refused, and kept in `unknown`.
    pub fn answer(&mut self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = without_numbers(body);
        let is_of = |line: &&Value| {
            (line["in"] == "*" || line["in"] == *self.state)
                && line["method"] == method
                && line["path"] == path
                && line["body"] == body
        };
        let mut known = self.lines.iter().filter(is_of);
        let ordered =
            known.clone().find(|line| self.order.as_deref().is_some_and(|step| line["step"] == step));
        if ordered.is_some() {
            self.order = None;
        }
        let Some(line) = ordered.or_else(|| known.next()).cloned() else {
            self.unknown.push(json!([method, path, body, self.state]));
            return (500, json!(["Error from API", format!("not in the recording: {method} {path} {body}")]));
        };
        if let Some(then) = line["then"].as_str() {
            then.clone_into(&mut self.state);
        }
        (line["status"].as_u64().expect("a status") as u16, line["reply"].clone())
    }

    /// All memory has been read that a restore on demand left behind.
    pub fn complete(&mut self) {
        self.state = self.state.trim_end_matches(", lazy").to_owned();
    }

    /// The machine as Cloud Hypervisor writes it into a snapshot's `config.json`.
    ///
    /// # Panics
    /// When the recording does not show it.
    pub fn config(&self) -> Value {
        let shows = |line: &&Value| line["in"] == "paused" && line["step"] == "state";
        self.lines.iter().find(shows).expect("the state of a paused VM")["reply"]["config"].clone()
    }
}

/// A directory that is handed over is another one each time.
fn without_numbers(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(url) = body.get("destination_url").and_then(Value::as_str) {
        let numbered = |text: &str| {
            let (pid, fd) = text.strip_prefix("file:///proc/")?.split_once("/fd/")?;
            (pid.parse::<u32>().is_ok() && fd.parse::<u32>().is_ok()).then_some(())
        };
        if numbered(url).is_some() {
            body["destination_url"] = "file:///proc/PID/fd/N".into();
        }
    }
    body
}

/// Speaks as Cloud Hypervisor's server does until the other side hangs up: each request, with its body (null when it has
/// none), gets the answer that `answer` gives.
pub fn serve(mut stream: UnixStream, mut answer: impl FnMut(&str, &str, &Value) -> (u16, Value)) {
    let mut bytes = Vec::new();
    loop {
        while let Some((method, path, body, used)) = request(&bytes) {
            bytes.drain(..used);
            let (status, reply) = answer(&method, &path, &body);
            if stream.write_all(response(status, &reply).as_bytes()).is_err() {
                return;
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

fn response(status: u16, reply: &Value) -> String {
    let head = format!("HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n");
    if reply.is_null() {
        return head + "\r\n";
    }
    let body = reply.to_string();
    let length = body.len();
    format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The first request in these bytes, and how many of them it takes. As the real one, this refuses what has a head line of
/// 1 KiB or a body without its length.
fn request(bytes: &[u8]) -> Option<(String, String, Value, usize)> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).expect("a head in ASCII");
    assert!(text.lines().all(|line| line.len() < 1024), "a head line of 1 KiB: {text}");
    let mut words = text.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let length = text.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length = length.map_or(0, |length| length.trim().parse().expect("a length"));
    let body = bytes.get(head..head + length)?;
    let body = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).expect("a body in JSON"),
    };
    Some((method, path, body, head + length))
}
