//! An HTTP client on a Unix socket, small enough to be read, so that what the server sends is seen as it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use wrenn_tests::{Value, program::LIMIT};

/// One connection.
pub struct Client {
    reader: BufReader<UnixStream>,
}

/// A whole reply.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the server's socket");
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Self { reader: BufReader::new(stream) }
    }

    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    pub fn send(&mut self, method: &str, target: &str, body: &[u8]) {
        let head =
            format!("{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut stream = self.stream();
        stream.write_all(&[head.as_bytes(), body].concat()).expect("a server that reads");
    }

    /// The next reply's status and headers.
    pub fn head(&mut self) -> Response {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let count = self.reader.read_line(&mut line).expect("a head in time");
            assert_ne!(count, 0, "the connection ended before a reply's head did: {lines:?}");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let header = |line: &String| {
            line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        };
        Response { status, headers: lines[1..].iter().filter_map(header).collect(), body: Vec::new() }
    }

    /// The next reply.
    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        if let Some(length) = response.header("content-length") {
            response.body.resize(length.parse().expect("a length"), 0);
            self.reader.read_exact(&mut response.body).expect("the whole body");
        } else {
            while let Some(chunk) = self.chunk() {
                response.body.extend(chunk);
            }
        }
        response
    }

    pub fn call(&mut self, method: &str, target: &str, body: &[u8]) -> Response {
        self.send(method, target, body);
        self.response()
    }

    /// The next piece of a chunked body, `None` at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a chunk in time");
        let length = usize::from_str_radix(line.trim(), 16)
            .unwrap_or_else(|_| panic!("the body broke off, at {line:?}"));
        let mut chunk = vec![0; length + 2];
        self.reader.read_exact(&mut chunk).expect("the whole chunk");
        chunk.truncate(length);
        (length > 0).then_some(chunk)
    }

    /// The next event of a stream. The server sends a chunk for each.
    pub fn event(&mut self) -> Option<Value> {
        let chunk = self.chunk()?;
        Some(serde_json::from_slice(&chunk).unwrap_or_else(|error| panic!("{error}: {chunk:?}")))
    }

    /// Whether the server has closed the connection, once it has.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(self.reader.read_to_end(&mut rest), Ok(0))
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }

    /// The same, once its status has been found to be this.
    #[track_caller]
    pub fn status_is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    /// The error's code, once the status has been found to be this.
    #[track_caller]
    pub fn code(self, status: u16) -> String {
        self.status_is(status).json()["error"]["code"].as_str().expect("an error's code").to_owned()
    }
}
