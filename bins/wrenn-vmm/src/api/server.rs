//! The API's socket: connections that are kept, one request at a time.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::Response;
use super::http::{self, Request};

/// Connections at a time, as Firecracker has it.
const CONNECTIONS: usize = 10;
/// How long a client may leave an answer lying.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// The socket and its connections.
pub struct Server {
    listener: UnixListener,
    connections: Vec<Connection>,
}

struct Connection {
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// What the kernel said: the path must not exist.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // A client that gives up between `poll` and `accept` must not keep the others waiting.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, connections: Vec::new() })
    }

    /// What becomes readable when there is something to do.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let connections = self.connections.iter().map(|connection| connection.stream.as_fd());
        std::iter::once(self.listener.as_fd()).chain(connections)
    }

    /// Does what there is to do: `ready` says for each of [`Self::fds`] whether it was readable. `handle` answers
    /// requests.
    pub fn serve(&mut self, ready: &[bool], mut handle: impl FnMut(&Request) -> Response) {
        let mut kept = ready.iter().skip(1);
        self.connections.retain_mut(|connection| match kept.next() {
            Some(true) => connection.serve(&mut handle),
            _ => true,
        });
        if ready.first() == Some(&true) {
            self.accept();
        }
    }

    fn accept(&mut self) {
        let accepted = self.listener.accept().and_then(|(stream, _)| {
            stream.set_write_timeout(Some(WRITE_LIMIT))?;
            Ok(stream)
        });
        match accepted {
            Ok(mut stream) if self.connections.len() >= CONNECTIONS => {
                let _ = stream.write_all(&Response::fault(503, "Too many open connections").bytes());
            }
            Ok(stream) => self.connections.push(Connection { stream, bytes: Vec::new() }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("cannot accept a connection: {error}"),
        }
    }
}

impl Connection {
    /// Reads once and answers what is complete. Whether the connection goes on.
    fn serve(&mut self, handle: &mut impl FnMut(&Request) -> Response) -> bool {
        let mut chunk = [0; 8192];
        match self.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
            Err(error) => return error.kind() == io::ErrorKind::Interrupted,
        }
        loop {
            let (response, goes_on) = match http::parse(&self.bytes) {
                Ok(None) => return true,
                Ok(Some((request, used))) => {
                    self.bytes.drain(..used);
                    (handle(&request), true)
                }
                Err(why) => (Response::fault(400, &why), false),
            };
            if let Err(error) = self.stream.write_all(&response.bytes()) {
                log::warn!("an answer was not delivered: {error}");
                return false;
            }
            if !goes_on {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    /// Serves with an echo of the path until a request asks for the end.
    fn echo(path: &Path) -> std::thread::JoinHandle<()> {
        let mut server = Server::bind(path).unwrap();
        std::thread::spawn(move || {
            let mut over = false;
            while !over {
                let mut fds: Vec<_> = server.fds().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                poll(&mut fds, PollTimeout::NONE).unwrap();
                let ready: Vec<_> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
                server.serve(&ready, |request| {
                    over = request.path == "/end";
                    Response::fault(400, &request.path)
                });
            }
        })
    }

    fn ask(stream: &mut UnixStream, text: &str) -> String {
        stream.write_all(text.as_bytes()).unwrap();
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).unwrap();
        String::from_utf8_lossy(&chunk[..count]).into_owned()
    }

    #[test]
    fn one_connection_carries_many_requests_and_one_too_many_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let server = echo(&path);
        let mut first = UnixStream::connect(&path).unwrap();
        for word in ["/a", "/b"] {
            let answer = ask(&mut first, &format!("GET {word} HTTP/1.1\r\n\r\n"));
            assert!(answer.ends_with(&format!("{{\"fault_message\":\"{word}\"}}")), "{answer}");
        }
        let mut others: Vec<_> = (1..CONNECTIONS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        for other in &mut others {
            ask(other, "GET /c HTTP/1.1\r\n\r\n");
        }
        let mut text = String::new();
        UnixStream::connect(&path).unwrap().read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        // One that leaves makes room.
        drop(others.pop());
        let answer = ask(&mut UnixStream::connect(&path).unwrap(), "GET /d HTTP/1.1\r\n\r\n");
        assert!(answer.ends_with("{\"fault_message\":\"/d\"}"), "{answer}");
        ask(&mut first, "GET /end HTTP/1.1\r\n\r\n");
        server.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_speak_http_is_told_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let server = echo(&path);
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"hello\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.contains("400") && text.contains("fault_message"), "{text}");
        ask(&mut UnixStream::connect(&path).unwrap(), "GET /end HTTP/1.1\r\n\r\n");
        server.join().unwrap();
    }

    #[test]
    fn a_path_that_is_taken_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let _first = Server::bind(&path).unwrap();
        assert_eq!(Server::bind(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    }
}
