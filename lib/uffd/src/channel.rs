//! Between a server and its guardian: events as JSON, one a packet, some with descriptors.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use serde_json::{Map, Value, json};
use sys::fdpass;

use crate::Error;

/// Longer than this no event is.
const LONGEST: usize = 128 << 10;

/// An event of a server: its name, its other fields, and what came with it.
#[derive(Debug)]
pub(crate) struct Event {
    pub name: String,
    pub fields: Map<String, Value>,
    pub fds: Vec<OwnedFd>,
}

/// The fields of a JSON object; of anything else none.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// A new one: the guardian's end, and the server's.
pub(crate) fn pair() -> io::Result<(Heard, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (guardian, server) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Heard { socket: guardian.into(), room: vec![0; LONGEST] }, server))
}

/// The guardian's end.
#[derive(Debug)]
pub(crate) struct Heard {
    pub socket: UnixStream,
    room: Vec<u8>,
}

impl Heard {
    /// Waits for the next event. `None` when the server has ended.
    pub fn next(&mut self) -> Result<Option<Event>, Error> {
        let received = loop {
            match fdpass::receive(&self.socket, &mut self.room) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // With something unread in the other direction. There is nothing else than its end.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                done => break done.map_err(Error::io("listen to", "the page server"))?,
            }
        };
        match received.bytes {
            0 => Ok(None),
            bytes => parse(&self.room[..bytes], received.fds).map(Some),
        }
    }
}

fn parse(line: &[u8], fds: Vec<OwnedFd>) -> Result<Event, Error> {
    let strange = || Error::Protocol { what: String::from_utf8_lossy(line).into_owned() };
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(line) else { return Err(strange()) };
    match fields.shift_remove("event") {
        Some(Value::String(name)) => Ok(Event { name, fields, fds }),
        _ => Err(strange()),
    }
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct Teller(pub UnixStream);

impl Teller {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// One event. A guardian that is gone, or listens no more, does not keep the server from serving.
    pub fn tell(&self, event: &str, fields: Value) {
        let _ = self.hand_over(event, fields, &[]);
    }

    /// One event, with copies of descriptors.
    pub fn hand_over(&self, event: &str, fields: Value, fds: &[BorrowedFd]) -> io::Result<()> {
        let mut line = object(json!({ "event": event }));
        line.extend(object(fields));
        fdpass::send(&self.0, Value::Object(line).to_string().as_bytes(), fds).map(drop)
    }
}
