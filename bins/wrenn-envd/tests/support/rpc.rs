//! Connect RPC in both codecs.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    Agent,
    http::{Headers, Response},
    wire::{Fields, Message},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Json,
    Proto,
}

pub const CODECS: [Codec; 2] = [Codec::Json, Codec::Proto];

/// What to start.
#[derive(Clone, Default)]
pub struct Start<'a> {
    pub cmd: &'a str,
    pub args: &'a [&'a str],
    pub envs: &'a [(&'a str, &'a str)],
    pub cwd: Option<&'a str>,
    /// Columns and rows.
    pub pty: Option<(u32, u32)>,
    pub tag: Option<&'a str>,
    pub no_stdin: bool,
}

/// `sh -c SCRIPT`
pub fn shell<'a>(args: &'a [&'a str; 2]) -> Start<'a> {
    Start { cmd: "sh", args, ..Start::default() }
}

/// What a stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Start(u32),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Pty(Vec<u8>),
    End {
        exit_code: i64,
        exited: bool,
        status: String,
    },
    Keepalive,
    /// The stream's own end: the error's code, if there is one.
    Closed(Option<String>),
}

/// A whole life, gathered.
#[derive(Debug, Default)]
pub struct Life {
    pub pid: u32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub pty: Vec<u8>,
    /// Exit code, whether it exited by itself, and the status in words.
    pub end: Option<(i64, bool, String)>,
    pub error: Option<String>,
}

/// Which process.
#[derive(Clone, Copy)]
pub enum Which<'a> {
    Pid(u32),
    Tag(&'a str),
}

impl Codec {
    fn unary(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Proto => "application/proto",
        }
    }

    fn streaming(self) -> &'static str {
        match self {
            Self::Json => "application/connect+json",
            Self::Proto => "application/connect+proto",
        }
    }

    /// The JSON or the protobuf, whichever this codec wants.
    fn either(self, json: Value, proto: Message) -> Vec<u8> {
        match self {
            Self::Json => json.to_string().into_bytes(),
            Self::Proto => proto.encode(),
        }
    }

    pub fn start(self, start: &Start) -> Vec<u8> {
        let mut config = json!({"cmd": start.cmd, "args": start.args});
        let mut message = Message::default().bytes(1, start.cmd);
        for arg in start.args {
            message = message.bytes(2, arg);
        }
        for (name, value) in start.envs {
            config["envs"][name] = (*value).into();
            message = message.message(3, Message::default().bytes(1, name).bytes(2, value));
        }
        if let Some(cwd) = start.cwd {
            config["cwd"] = cwd.into();
            message = message.bytes(4, cwd);
        }
        let mut request = json!({"process": config});
        let mut message = Message::default().message(1, message);
        if let Some((cols, rows)) = start.pty {
            request["pty"] = json!({"size": {"cols": cols, "rows": rows}});
            message = message.message(2, pty(cols, rows));
        }
        if let Some(tag) = start.tag {
            request["tag"] = tag.into();
            message = message.bytes(3, tag);
        }
        if start.no_stdin {
            request["stdin"] = false.into();
            message = message.number(4, 0);
        }
        self.either(request, message)
    }

    fn event(self, bytes: &[u8]) -> Event {
        match self {
            Self::Json => {
                let value: Value = serde_json::from_slice(bytes).expect("a JSON event");
                let event = &value["event"];
                let data = |name: &str| {
                    let data = event["data"][name].as_str()?;
                    Some(STANDARD.decode(data).expect("base64"))
                };
                if let Some(pid) = event["start"]["pid"].as_u64() {
                    Event::Start(u32::try_from(pid).expect("a pid"))
                } else if let Some(bytes) = data("stdout") {
                    Event::Stdout(bytes)
                } else if let Some(bytes) = data("stderr") {
                    Event::Stderr(bytes)
                } else if let Some(bytes) = data("pty") {
                    Event::Pty(bytes)
                } else if event["end"].is_object() {
                    let end = &event["end"];
                    Event::End {
                        exit_code: end["exitCode"].as_i64().unwrap_or(0),
                        exited: end["exited"].as_bool().unwrap_or(false),
                        status: end["status"].as_str().unwrap_or("").into(),
                    }
                } else {
                    assert!(event["keepalive"].is_object(), "{value}");
                    Event::Keepalive
                }
            }
            Self::Proto => {
                let event = Fields::decode(bytes).message(1).expect("an event");
                if let Some(start) = event.message(1) {
                    Event::Start(u32::try_from(start.number(1)).expect("a pid"))
                } else if let Some(data) = event.message(2) {
                    let output = |field| data.bytes(field);
                    let stdout = output(1).map(Event::Stdout);
                    let others = || output(2).map(Event::Stderr).or_else(|| output(3).map(Event::Pty));
                    stdout.or_else(others).expect("an output")
                } else if let Some(end) = event.message(3) {
                    let status = end.text(3).unwrap_or_default();
                    Event::End { exit_code: end.signed(1), exited: end.number(2) == 1, status }
                } else {
                    event.message(4).expect("a keepalive");
                    Event::Keepalive
                }
            }
        }
    }

    fn selector(self, which: Which) -> (Value, Message) {
        match which {
            Which::Pid(pid) => (json!({"pid": pid}), Message::default().number(1, pid.into())),
            Which::Tag(tag) => (json!({"tag": tag}), Message::default().bytes(2, tag)),
        }
    }
}

fn pty(cols: u32, rows: u32) -> Message {
    Message::default().message(1, Message::default().number(1, cols.into()).number(2, rows.into()))
}

/// A stream of events.
pub struct Stream {
    codec: Codec,
    response: Response,
}

impl Stream {
    pub fn next(&mut self) -> Event {
        let mut head = [0; 5];
        self.response.read_exact(&mut head).expect("an envelope");
        let mut body = vec![0; u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize];
        self.response.read_exact(&mut body).expect("a whole message");
        if head[0] & 2 == 0 {
            return self.codec.event(&body);
        }
        let end: Value = serde_json::from_slice(&body).expect("JSON at the end in either codec");
        Event::Closed(end["error"]["code"].as_str().map(str::to_owned))
    }

    /// The pid, which comes first.
    pub fn pid(&mut self) -> u32 {
        match self.next() {
            Event::Start(pid) => pid,
            other => panic!("no start first: {other:?}"),
        }
    }

    /// Everything up to the end; nothing may follow it.
    pub fn life(mut self) -> Life {
        let mut life = Life::default();
        loop {
            match self.next() {
                Event::Start(pid) => life.pid = pid,
                Event::Closed(error) => {
                    life.error = error;
                    return life;
                }
                other if life.end.is_some() => panic!("{other:?} after the end"),
                Event::Stdout(bytes) => life.stdout.extend(bytes),
                Event::Stderr(bytes) => life.stderr.extend(bytes),
                Event::Pty(bytes) => life.pty.extend(bytes),
                Event::End { exit_code, exited, status } => life.end = Some((exit_code, exited, status)),
                Event::Keepalive => (),
            }
        }
    }

    pub fn disconnect(self) {
        self.response.disconnect();
    }
}

impl Life {
    pub fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    pub fn exit_code(&self) -> i64 {
        self.end.as_ref().unwrap_or_else(|| panic!("no end: {self:?}")).0
    }
}

impl Agent {
    /// A streaming call; a refusal shows in the stream.
    pub fn stream(&self, codec: Codec, method: &str, headers: Headers, message: &[u8]) -> Stream {
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(message.len()).expect("a length").to_be_bytes());
        body.extend_from_slice(message);
        let mut all = vec![("Content-Type", codec.streaming()), ("Connect-Protocol-Version", "1")];
        all.extend_from_slice(headers);
        let response = self.request("POST", &format!("/process.Process/{method}"), &all, &body);
        assert_eq!(response.status, 200, "{method}");
        assert_eq!(response.header("content-type"), Some(codec.streaming()));
        Stream { codec, response }
    }

    pub fn start_process(&self, codec: Codec, start: &Start) -> Stream {
        self.stream(codec, "Start", &[], &codec.start(start))
    }

    pub fn start_as(&self, codec: Codec, user: &str, start: &Start) -> Stream {
        let user = format!("Basic {}", STANDARD.encode(format!("{user}:")));
        self.stream(codec, "Start", &[("Authorization", &user)], &codec.start(start))
    }

    pub fn connect(&self, codec: Codec, which: Which) -> Stream {
        let (json, proto) = codec.selector(which);
        let request = codec.either(json!({"process": json}), Message::default().message(1, proto));
        self.stream(codec, "Connect", &[], &request)
    }

    /// A call that must succeed, or its error's code.
    pub fn unary(&self, codec: Codec, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let headers = [("Content-Type", codec.unary()), ("Connect-Protocol-Version", "1")];
        let response = self.request("POST", method, &headers, message);
        if response.status == 200 {
            return Ok(response.bytes());
        }
        let error = response.json();
        Err(error["code"].as_str().unwrap_or_else(|| panic!("{error}")).to_owned())
    }

    fn on_process(
        &self,
        codec: Codec,
        method: &str,
        which: Which,
        json: Value,
        proto: Message,
    ) -> Result<(), String> {
        let (selector, message) = codec.selector(which);
        let mut request = json;
        request["process"] = selector;
        let request = codec.either(request, proto.message(1, message));
        self.unary(codec, &format!("/process.Process/{method}"), &request).map(drop)
    }

    pub fn send_stdin(&self, codec: Codec, which: Which, bytes: &[u8]) -> Result<(), String> {
        let json = json!({"input": {"stdin": STANDARD.encode(bytes)}});
        self.on_process(
            codec,
            "SendInput",
            which,
            json,
            Message::default().message(2, Message::default().bytes(1, bytes)),
        )
    }

    pub fn send_pty(&self, codec: Codec, which: Which, bytes: &[u8]) -> Result<(), String> {
        let json = json!({"input": {"pty": STANDARD.encode(bytes)}});
        self.on_process(
            codec,
            "SendInput",
            which,
            json,
            Message::default().message(2, Message::default().bytes(2, bytes)),
        )
    }

    pub fn close_stdin(&self, codec: Codec, which: Which) -> Result<(), String> {
        self.on_process(codec, "CloseStdin", which, json!({}), Message::default())
    }

    pub fn signal(&self, codec: Codec, which: Which, number: u64, name: &str) -> Result<(), String> {
        self.on_process(
            codec,
            "SendSignal",
            which,
            json!({"signal": name}),
            Message::default().number(2, number),
        )
    }

    pub fn resize(&self, codec: Codec, which: Which, cols: u32, rows: u32) -> Result<(), String> {
        let json = json!({"pty": {"size": {"cols": cols, "rows": rows}}});
        self.on_process(codec, "Update", which, json, Message::default().message(2, pty(cols, rows)))
    }

    /// The pids and tags of everything that runs.
    pub fn list(&self, codec: Codec) -> Vec<(u32, Option<String>)> {
        let request = codec.either(json!({}), Message::default());
        let reply = self.unary(codec, "/process.Process/List", &request).expect("a list");
        match codec {
            Codec::Json => {
                let reply: Value = serde_json::from_slice(&reply).expect("JSON");
                let processes = reply["processes"].as_array().cloned().unwrap_or_default();
                let pid =
                    |value: &Value| u32::try_from(value["pid"].as_u64().expect("a pid")).expect("a pid");
                processes.iter().map(|found| (pid(found), found["tag"].as_str().map(str::to_owned))).collect()
            }
            Codec::Proto => {
                let found = Fields::decode(&reply);
                let found = found.all(1).map(|value| match value {
                    super::wire::Value::Bytes(bytes) => Fields::decode(&bytes),
                    super::wire::Value::Number(number) => panic!("{number} for a process"),
                });
                found.map(|found| (u32::try_from(found.number(2)).expect("a pid"), found.text(3))).collect()
            }
        }
    }
}
