//! HTTP/1.1, as little of it as the tests need.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use super::Agent;

/// A test waits this long for an answer before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A response whose body is read as it comes.
pub struct Response {
    pub status: u16,
    headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    left: Left,
}

/// What is left of the body.
enum Left {
    Bytes(u64),
    /// Chunks, and none of them begun.
    FirstChunk,
    /// Of the current chunk; another one follows, but perhaps not soon.
    Chunk(u64),
    End,
}

pub type Headers<'a> = &'a [(&'a str, &'a str)];

impl Agent {
    /// Sends a request with a whole body and reads the response's head.
    pub fn request(&self, method: &str, path: &str, headers: Headers, body: &[u8]) -> Response {
        let mut stream = TcpStream::connect(self.address).expect("the agent listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if method != "GET" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        stream.write_all(head.as_bytes()).expect("the head is taken");
        // A server may refuse before it has read everything.
        let _ = stream.write_all(body);
        Response::read(stream)
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, &[], &[])
    }

    pub fn post(&self, path: &str, body: &str) -> Response {
        self.request("POST", path, &[("Content-Type", "application/json")], body.as_bytes())
    }
}

impl Response {
    fn read(stream: TcpStream) -> Self {
        let mut stream = BufReader::new(stream);
        let mut line = |what: &str| {
            let mut line = String::new();
            stream.read_line(&mut line).unwrap_or_else(|error| panic!("{what}: {error}"));
            line.trim_end().to_owned()
        };
        let status_line = line("the status line");
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{status_line:?}"));
        let mut headers = Vec::new();
        loop {
            let header = line("a header");
            let Some((name, value)) = header.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut response = Self { status, headers, stream, left: Left::End };
        response.left = match (response.header("content-length"), response.header("transfer-encoding")) {
            (Some(length), _) => Left::Bytes(length.parse().expect("a length")),
            (None, Some("chunked")) => Left::FirstChunk,
            (None, _) => Left::End,
        };
        response
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The whole body.
    pub fn bytes(mut self) -> Vec<u8> {
        let mut body = Vec::new();
        self.read_to_end(&mut body).expect("the body");
        body
    }

    pub fn text(self) -> String {
        String::from_utf8(self.bytes()).expect("text")
    }

    pub fn json(self) -> serde_json::Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    /// Leaves in the middle, as a client does that goes away.
    pub fn disconnect(self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }

    /// Reads the next chunk's size; a chunk before it ends with an empty line.
    fn next_chunk(&mut self) -> std::io::Result<()> {
        let mut line = String::new();
        if !matches!(self.left, Left::FirstChunk) {
            self.stream.read_line(&mut line)?;
            line.clear();
        }
        self.stream.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
        self.left = if size == 0 { Left::End } else { Left::Chunk(size) };
        Ok(())
    }
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if matches!(self.left, Left::FirstChunk | Left::Chunk(0)) {
            self.next_chunk()?;
        }
        let (Left::Bytes(left) | Left::Chunk(left)) = &mut self.left else { return Ok(0) };
        let most = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let read = self.stream.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        *left -= read as u64;
        Ok(read)
    }
}
