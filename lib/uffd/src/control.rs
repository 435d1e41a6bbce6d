//! The control socket: one line of JSON asks, one line answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use sys::process::Process;

use crate::Error;

/// Longer than this no request is.
const LONGEST: usize = 16 << 10;

/// How long a server may take to accept a connection when others wait already.
const ACCEPT: Duration = Duration::from_secs(5);

/// What a server can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// What it has done, and the removed ranges into their file.
    Stats {
        /// Ranges discarded since the snapshot in this directory; without it, all.
        since: Option<PathBuf>,
        /// A snapshot was just dumped into this directory.
        dumped: Option<PathBuf>,
    },
    /// What it has done, and nothing is written or remembered.
    Look,
    /// To end.
    Stop {
        /// Even if a VMM would hang.
        force: bool,
    },
}

impl Request {
    fn to_json(&self) -> Value {
        match self {
            Self::Stats { since, dumped } => {
                json!({"verb": "stats", "since": since, "dumped": dumped})
            }
            Self::Look => json!({"verb": "look"}),
            Self::Stop { force } => json!({"verb": "stop", "force": force}),
        }
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line).ok()?;
        match value.get("verb")?.as_str()? {
            "stats" => {
                let path = |name: &str| Some(PathBuf::from(value.get(name)?.as_str()?));
                Some(Self::Stats { since: path("since"), dumped: path("dumped") })
            }
            "look" => Some(Self::Look),
            "stop" => {
                Some(Self::Stop { force: value.get("force").and_then(Value::as_bool).unwrap_or(false) })
            }
            _ => None,
        }
    }
}

/// A connection on the server's side. It never waits.
#[derive(Debug)]
pub(crate) struct Connection {
    pub stream: UnixStream,
    line: Vec<u8>,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// The request once its line is complete; `Err` when the connection is of no more use.
    pub fn request(&mut self) -> Result<Option<Request>, ()> {
        let mut buffer = [0; 512];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(()),
                Ok(count) => self.line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(()),
            }
            if self.line.len() > LONGEST {
                return Err(());
            }
        }
        match self.line.iter().position(|&byte| byte == b'\n') {
            None => Ok(None),
            Some(end) => match Request::parse(&self.line[..end]) {
                Some(request) => Ok(Some(request)),
                None => {
                    self.answer(Err(wire::Error::usage(
                        "a request is {\"verb\": \"stats\"|\"stop\"} on a line",
                    )));
                    Err(())
                }
            },
        }
    }

    /// Answers. A short line fits an empty socket; if nobody takes it, nobody wanted it.
    pub fn answer(&mut self, answer: Result<Value, wire::Error>) {
        let value = match answer {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({"error": error.to_json("wrenn-uffd", "")}),
        };
        let _ = self.stream.write_all(format!("{value}\n").as_bytes());
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// An error that another process of ours reported. Which verb it happened in, the frame says.
pub(crate) fn refusal(error: &Value) -> wire::Error {
    wire::Error { origin: None, ..wire::Error::from_json(error) }
}

/// A conversation with a server.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    /// Which process listens.
    pub server: Process,
}

impl Client {
    /// Connects, without waiting for a server that takes no connections. `None` when nobody listens there, or it does not.
    pub fn connect_at_once(control: &Path) -> Result<Option<Self>, Error> {
        match sys::listener::connect(control, Duration::ZERO) {
            Ok(stream) => Self::of(stream, control),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::io("connect to", control)(error)),
        }
    }

    /// Connects. `None` when nobody listens there.
    pub fn connect(control: &Path) -> Result<Option<Self>, Error> {
        let stream = match sys::listener::connect(control, ACCEPT) {
            Ok(stream) => stream,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
            {
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Error::NoAnswer { control: control.to_owned(), seconds: ACCEPT.as_secs() });
            }
            Err(error) => return Err(Error::io("connect to", control)(error)),
        };
        Self::of(stream, control)
    }

    fn of(stream: UnixStream, control: &Path) -> Result<Option<Self>, Error> {
        let peer = sys::fdpass::peer(&stream).map_err(Error::io("look at the peer of", control))?;
        match Process::of_pid(peer.pid) {
            Ok(server) => Ok(Some(Self { stream, server })),
            Err(_) => Ok(None),
        }
    }

    /// Asks, and waits for the answer at most `limit`. The inner error is the server's own. A server that leaves
    /// meanwhile, because its VMM did, is `NotRunning`.
    pub fn ask(
        &self,
        control: &Path,
        request: Request,
        limit: Duration,
    ) -> Result<Result<Value, wire::Error>, Error> {
        let silent = |error: io::Error| match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Error::NotRunning { control: control.to_owned() }
            }
            _ => Error::NoAnswer { control: control.to_owned(), seconds: limit.as_secs() },
        };
        self.stream.set_read_timeout(Some(limit)).map_err(silent)?;
        (&self.stream).write_all(format!("{}\n", request.to_json()).as_bytes()).map_err(silent)?;
        let mut line = String::new();
        if BufReader::new(&self.stream).read_line(&mut line).map_err(silent)? == 0 {
            return Err(silent(io::ErrorKind::UnexpectedEof.into()));
        }
        let strange = || Error::Protocol { what: line.trim().to_owned() };
        let answer: Value = serde_json::from_str(&line).map_err(|_| strange())?;
        match (answer.get("ok"), answer.get("error")) {
            (Some(ok), _) => Ok(Ok(ok.clone())),
            (None, Some(error)) => Ok(Err(refusal(error))),
            (None, None) => Err(strange()),
        }
    }
}
