//! The control socket: one line of JSON asks, one line answers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sys::process::Process;

use crate::Error;
use crate::orders::{process_json, process_of};

/// Longer than this no request is.
const LONGEST: usize = 16 << 10;

/// How long a server may take to accept a connection when others wait already.
const ACCEPT: Duration = Duration::from_secs(5);

/// How long an answer may take to be read as far as it does not fit the socket.
const READ: Duration = Duration::from_secs(1);

/// What a server can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// What it has done, and the removed ranges into their file.
    Stats {
        /// Of this VM, where there are several.
        vm: Option<Process>,
        /// Ranges discarded since the snapshot in this directory; without it, all.
        since: Option<PathBuf>,
        /// A snapshot was just dumped into this directory.
        dumped: Option<PathBuf>,
    },
    /// What it has done, and nothing is written or remembered.
    Look {
        /// For this VM, where there are several.
        vm: Option<Process>,
    },
    /// To end.
    Stop {
        /// Even if a VMM would hang.
        force: bool,
    },
    /// To end, and another one to go on in its place.
    Restart,
}

impl Request {
    fn to_json(&self) -> Value {
        match self {
            Self::Stats { vm, since, dumped } => {
                let vm = vm.as_ref().map(process_json);
                json!({"verb": "stats", "vm": vm, "since": since, "dumped": dumped})
            }
            Self::Look { vm } => json!({"verb": "look", "vm": vm.as_ref().map(process_json)}),
            Self::Stop { force } => json!({"verb": "stop", "force": force}),
            Self::Restart => json!({"verb": "restart"}),
        }
    }

    /// A request, and the service that it is meant for.
    fn parse(line: &[u8]) -> Option<(Option<Process>, Self)> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let vm = value.get("vm").and_then(process_of);
        let request = match value.get("verb")?.as_str()? {
            "stats" => {
                let path = |name: &str| Some(PathBuf::from(value.get(name)?.as_str()?));
                Self::Stats { vm, since: path("since"), dumped: path("dumped") }
            }
            "look" => Self::Look { vm },
            "stop" => Self::Stop { force: value.get("force").and_then(Value::as_bool).unwrap_or(false) },
            "restart" => Self::Restart,
            _ => return None,
        };
        Some((value.get("of").and_then(process_of), request))
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
    pub fn request(&mut self) -> Result<Option<(Option<Process>, Request)>, ()> {
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
                        "a request is {\"verb\": \"stats\"|\"stop\"|\"restart\"} on a line",
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
        // A long answer, of many VMs, waits a moment for who reads it.
        let _ = self.stream.set_nonblocking(false);
        let _ = self.stream.set_write_timeout(Some(READ));
        let _ = self.stream.write_all(format!("{value}\n").as_bytes());
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// An error that another process of ours reported. Which verb it happened in, the frame says.
pub(crate) fn refusal(error: &Value) -> wire::Error {
    wire::Error { origin: None, ..wire::Error::from_json(error) }
}

/// Asks the server that listens at `control`, and waits for the answer at most `limit`. The inner error is the server's own.
/// `of` is the service that is meant: another one says `NotRunning`. A server that dies meanwhile is followed by another, which
/// is asked then; one that leaves, because its VMM did, is `NotRunning`.
pub(crate) fn ask(
    control: &Path,
    of: Option<&Process>,
    request: &Request,
    limit: Duration,
) -> Result<Result<Value, wire::Error>, Error> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match Client::connect(control, left.min(ACCEPT))?.ask(of, request, left) {
            Err(Error::NotRunning { .. }) if !left.is_zero() => {}
            done => return done,
        }
    }
}

/// A conversation with a server.
#[derive(Debug)]
struct Client<'a> {
    stream: UnixStream,
    control: &'a Path,
}

impl<'a> Client<'a> {
    /// Connects. A server that takes no connections is waited for at most `limit`.
    fn connect(control: &'a Path, limit: Duration) -> Result<Self, Error> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NotRunning { control: control.to_owned() }
            }
            io::ErrorKind::TimedOut => {
                Error::NoAnswer { control: control.to_owned(), seconds: limit.as_secs() }
            }
            _ => Error::io("connect to", control)(error),
        };
        Ok(Self { stream: sys::listener::connect(control, limit).map_err(failed)?, control })
    }

    fn ask(
        &self,
        of: Option<&Process>,
        request: &Request,
        limit: Duration,
    ) -> Result<Result<Value, wire::Error>, Error> {
        let silent = |error: io::Error| match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Error::NotRunning { control: self.control.to_owned() }
            }
            _ => Error::NoAnswer { control: self.control.to_owned(), seconds: limit.as_secs() },
        };
        let mut line = request.to_json();
        line["of"] = of.map(process_json).into();
        // No time at all would mean for ever.
        self.stream.set_read_timeout(Some(limit.max(Duration::from_millis(1)))).map_err(silent)?;
        (&self.stream).write_all(format!("{line}\n").as_bytes()).map_err(silent)?;
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
