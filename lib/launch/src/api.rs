//! A client of a VMM's API: HTTP/1.1 over a Unix socket, one request at a time, each with its time limit.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use wire::Value;

use crate::Error;

/// How long a VMM may take to accept a connection when others wait already.
const ACCEPT: Duration = Duration::from_secs(5);
/// An answer's head may not be longer, bytes.
const HEAD_LIMIT: usize = 16 << 10;
/// An answer's body may not be longer, bytes.
const BODY_LIMIT: usize = 1 << 20;

/// A connection that stays open from call to call.
#[derive(Debug)]
pub(crate) struct Api {
    stream: UnixStream,
    path: PathBuf,
}

/// One call: what it is for (in an error's words: "boot", "pause the VM"), and what is sent.
pub(crate) struct Request<'a> {
    pub what: &'a str,
    pub method: &'static str,
    pub path: &'a str,
    pub body: Option<Value>,
    pub limit: Duration,
    /// Whether SIGINT and SIGTERM end the wait for the answer.
    pub interruptible: bool,
}

impl<'a> Request<'a> {
    /// An interruptible call.
    pub fn new(
        what: &'a str,
        method: &'static str,
        path: &'a str,
        body: Option<Value>,
        limit: Duration,
    ) -> Self {
        Self { what, method, path, body, limit, interruptible: true }
    }
}

/// What a VMM answered.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Api {
    /// Connects to the socket, however long its path is.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // A socket address holds 107 bytes; through the directory's descriptor any path is short enough.
        let dir = open_dir(dir)?;
        let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        let stream = sys::listener::connect(&short, ACCEPT)?;
        Ok(Self { stream, path: path.into() })
    }

    /// The process that listens at the other end.
    pub fn peer_pid(&self) -> Option<i32> {
        getsockopt(&self.stream, PeerCredentials).ok().map(|peer| peer.pid())
    }

    /// Sends a request and waits for its answer: the body as JSON (null when there is none).
    ///
    /// # Errors
    /// [`Error::Api`] with the VMM's own words when it refuses, [`Error::NoSpace`] when these tell of a full disk,
    /// [`Error::Died`] when it hangs up, [`Error::Timeout`], [`Error::Interrupted`].
    pub fn call(&mut self, request: Request<'_>) -> Result<Value, Error> {
        let answer = self.exchange(&request)?;
        if !(200..300).contains(&answer.status) {
            let (what, status, fault) = (request.what.to_owned(), answer.status, fault(&answer.body));
            return Err(match is_no_space(&fault) {
                true => Error::NoSpace { what, fault },
                false => Error::Api { what, status, fault },
            });
        }
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Protocol { what: request.what.into(), why: format!("not JSON: {error}") })
    }

    fn exchange(&mut self, request: &Request<'_>) -> Result<Answer, Error> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                Error::Died { doing: request.what.into(), status: None }
            }
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                Error::Timeout { what: request.what.into(), limit: request.limit }
            }
            io::ErrorKind::Interrupted => Error::Interrupted(request.what.into()),
            _ => Error::Protocol { what: request.what.into(), why: error.to_string() },
        };
        let deadline = Instant::now() + request.limit;
        log::debug!("{} {} to {}", request.method, request.path, self.path.display());
        self.stream.set_write_timeout(Some(request.limit)).map_err(failed)?;
        self.stream.write_all(&head_and_body(request)).map_err(failed)?;
        let mut bytes = Vec::new();
        loop {
            match parse(&bytes) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) => {}
                Err(why) => return Err(Error::Protocol { what: request.what.into(), why: why.into() }),
            }
            readable(&self.stream, deadline, request.interruptible).map_err(failed)?;
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).map_err(failed)? {
                0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                count => bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// A directory, only to name what is in it.
pub(crate) fn open_dir(path: &Path) -> io::Result<File> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY;
    File::options().read(true).custom_flags(flags.bits()).open(path)
}

/// Waits until the answer goes on.
fn readable(stream: &UnixStream, deadline: Instant, interruptible: bool) -> io::Result<()> {
    let signals = sys::signals::fd().filter(|_| interruptible);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
        fds.extend(signals.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) if fds[0].any() == Some(true) => return Ok(()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if sys::signals::pending().is_some() => return Err(io::ErrorKind::Interrupted.into()),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Firecracker's server wants a length with every body, none without, and header lines below 1 KiB.
fn head_and_body(request: &Request<'_>) -> Vec<u8> {
    let mut text = format!(
        "{} {} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n",
        request.method, request.path
    );
    if let Some(body) = &request.body {
        let body = body.to_string();
        let length = body.len();
        text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"));
    } else {
        text.push_str("\r\n");
    }
    text.into_bytes()
}

/// The answer that these bytes are, `None` while it is not complete. An answer without a length has no body: a VMM
/// keeps the connection, so nothing else could end it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Answer>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_LIMIT => return Ok(None),
        Ok(httparse::Status::Partial) => return Err("the answer's head is too long"),
        Err(_) => return Err("the answer is not HTTP"),
    };
    let mut length = 0;
    for header in response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("content-length")) {
        length = std::str::from_utf8(header.value)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .filter(|&length: &usize| length <= BODY_LIMIT)
            .ok_or("the answer's length is wrong or too large")?;
    }
    let status = response.code.unwrap_or_default();
    Ok(bytes.get(head..head + length).map(|body| Answer { status, body: body.into() }))
}

/// A VMM's own words: Firecracker says `fault_message`, its HTTP server `error` (in JSON that may be broken). Cloud
/// Hypervisor says an array, each line the cause of the one before it.
fn fault(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    if let Some(causes) = json.as_array() {
        let causes: Vec<_> = causes.iter().filter_map(Value::as_str).collect();
        return causes[usize::from(causes.len() > 1 && causes[0] == "Error from API")..].join(": ");
    }
    ["fault_message", "error"].iter().find_map(|name| json.get(name)?.as_str()).map_or_else(
        || String::from_utf8_lossy(body).trim().chars().take(500).collect(),
        |text| text.trim().to_owned(),
    )
}

/// A full disk can only be told from a VMM's words, which hold the errno.
fn is_no_space(fault: &str) -> bool {
    [Errno::ENOSPC, Errno::EDQUOT]
        .iter()
        .any(|errno| fault.contains(&format!("(os error {})", *errno as i32)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use wire::json;

    #[test]
    fn an_answer_in_any_pieces_is_the_same_answer() {
        let bytes = b"HTTP/1.1 400 \r\nServer: Firecracker API\r\ncontent-length: 5\r\n\r\nhello";
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(parse(bytes), Ok(Some(Answer { status: 400, body: b"hello".into() })));
        assert_eq!(parse(b"HTTP/1.1 204 \r\n\r\n"), Ok(Some(Answer { status: 204, body: vec![] })));
    }

    #[test]
    fn an_answer_that_is_not_http_or_has_no_end_is_refused() {
        for bytes in [
            &b"SSH-2.0\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        ] {
            assert!(parse(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        let mut endless = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        endless.resize(HEAD_LIMIT, b'x');
        assert!(parse(&endless).is_err());
    }

    /// A server that answers each request with the next of `answers`, and what it was sent.
    fn served(answers: Vec<&'static [u8]>) -> (Api, std::thread::JoinHandle<Vec<String>>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120)).join("api.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let fd = open_dir(path.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/api.sock", fd.as_raw_fd())).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            for answer in answers {
                let mut chunk = [0; 4096];
                let count = stream.read(&mut chunk).unwrap();
                seen.push(String::from_utf8_lossy(&chunk[..count]).into_owned());
                stream.write_all(answer).unwrap();
            }
            seen
        });
        (Api::connect(&path).unwrap(), server, dir)
    }

    fn get(limit: Duration) -> Request<'static> {
        Request::new("say what it is", "GET", "/", None, limit)
    }

    #[test]
    fn one_connection_carries_many_calls_and_a_refusal_is_in_the_vmms_words() {
        let (mut api, server, _dir) = served(vec![
            b"HTTP/1.1 200 \r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}",
            b"HTTP/1.1 204 \r\n\r\n",
            b"HTTP/1.1 400 \r\nContent-Length: 26\r\n\r\n{\"fault_message\":\"no\\nno\"}",
        ]);
        assert_eq!(api.peer_pid(), Some(std::process::id() as i32));
        let limit = Duration::from_secs(10);
        assert_eq!(api.call(get(limit)).unwrap(), json!({"state": "Paused"}));
        let put = |body| Request { method: "PUT", path: "/x", body: Some(body), ..get(limit) };
        assert_eq!(api.call(put(json!({"a": 1}))).unwrap(), Value::Null);
        let error = wire::Error::from(api.call(put(json!({}))).unwrap_err());
        assert_eq!((error.kind, error.code.as_str()), (wire::Kind::Peer, "launch.api"));
        assert_eq!(error.message, "the VMM refused to say what it is (400): no; no");
        let seen = server.join().unwrap();
        assert!(seen[0].starts_with("GET / HTTP/1.1\r\n") && seen[0].ends_with("\r\n\r\n"), "{}", seen[0]);
        assert!(!seen[0].contains("Content-Length"), "a GET has no body");
        assert!(
            seen[1].contains("Content-Length: 7\r\n") && seen[1].ends_with("\r\n\r\n{\"a\":1}"),
            "{}",
            seen[1]
        );
    }

    #[test]
    fn a_full_disk_is_told_from_other_refusals() {
        // As Firecracker 1.16 and Cloud Hypervisor 53 word it.
        assert!(is_no_space(
            "Create snapshot error: Cannot write memory file: Dumping memory to file failed: \
             No space left on device (os error 28)"
        ));
        assert!(is_no_space(&fault(
            br#"["Error from API","The VM could not be snapshotted","Guest memory error: No space left on device (os error 28)"]"#
        )));
        assert!(!is_no_space("Cannot open /x: No such file or directory (os error 2)"));
    }

    #[test]
    fn a_chain_of_causes_is_one_line() {
        let body = br#"["Error from API","The VM could not be paused","VM is not running"]"#;
        assert_eq!(fault(body), "The VM could not be paused: VM is not running");
        assert_eq!(fault(br#"["Not Found"]"#), "Not Found");
        assert_eq!(fault(b"[]"), "");
        assert_eq!(fault(b"plain words\n"), "plain words");
    }

    #[test]
    fn a_vmm_that_hangs_up_has_died() {
        let (mut api, server, _dir) = served(vec![b"HTTP/1.1 2"]);
        let error = wire::Error::from(api.call(get(Duration::from_secs(10))).unwrap_err());
        assert_eq!(error.code, "launch.died");
        server.join().unwrap();
    }

    #[test]
    fn a_vmm_that_does_not_answer_is_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut api = Api::connect(&path).unwrap();
        let error = wire::Error::from(api.call(get(Duration::from_millis(20))).unwrap_err());
        assert_eq!(
            (error.code.as_str(), error.kind, error.retry),
            ("launch.timeout", wire::Kind::Timeout, true)
        );
    }
}
