//! Between a server and its guardian, in both directions: messages as JSON, one a packet, some with descriptors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::time::TimeSpec;
use serde_json::{Map, Value, json};
use sys::fdpass;

use crate::Error;

/// Longer than this no message is.
const LONGEST: usize = 128 << 10;

/// How long somebody may take to listen to what he must know.
const PATIENCE: Duration = Duration::from_secs(5);

/// A message: its name, its other fields, and what came with it.
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

/// One end. It never waits, and threads may tell at once: each message is a packet.
#[derive(Debug, Clone)]
pub(crate) struct Channel(Arc<UnixStream>);

/// What the other end has said.
#[derive(Debug)]
pub(crate) enum Heard {
    Event(Event),
    Nothing,
    /// It is gone.
    Ended,
}

/// A new channel: this process's end, and one to hand on.
pub(crate) fn pair() -> io::Result<(Channel, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((Channel::new(ours)?, theirs))
}

impl Channel {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        // It holds for both directions, and not for the other end.
        socket.set_nonblocking(true)?;
        Ok(Self(Arc::new(socket)))
    }

    /// The next message.
    pub fn hear(&self) -> Result<Heard, Error> {
        let mut room = vec![0; LONGEST];
        let received = loop {
            match fdpass::receive(&self.0, &mut room) {
                // Reset: the other end went without having read all it was told. It is said once, and before what that end had
                // to say.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionReset
                    ) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::Nothing),
                done => break done.map_err(Error::io("listen to", "the page server"))?,
            }
        };
        match received.bytes {
            0 => Ok(Heard::Ended),
            bytes => parse(&room[..bytes], received.fds).map(Heard::Event),
        }
    }

    /// One message. Somebody who is gone, or listens no more, does not keep this end from its work.
    pub fn tell(&self, event: &str, fields: Value) {
        let _ = self.hand_over(event, fields, &[]);
    }

    /// One message that must be heard. Somebody who has not listened for a while is waited for.
    pub fn last_words(&self, event: &str, fields: Value) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.hand_over(event, fields.clone(), &[]) {
            let left = deadline.saturating_duration_since(Instant::now());
            if error.kind() != io::ErrorKind::WouldBlock || left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLOUT)];
            let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None);
        }
    }

    /// One message, with copies of descriptors.
    pub fn hand_over(&self, event: &str, fields: Value, fds: &[BorrowedFd]) -> io::Result<()> {
        let mut line = object(json!({ "event": event }));
        line.extend(object(fields));
        let line = Value::Object(line).to_string();
        if line.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        fdpass::send(&self.0, line.as_bytes(), fds).map(drop)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_an_end_that_has_not_read_all_are_heard() {
        let (ours, theirs) = pair().unwrap();
        let theirs = Channel::new(theirs).unwrap();
        ours.tell("unread", json!({}));
        theirs.tell("closed", json!({"reason": "stopped"}));
        drop(theirs);
        let Ok(Heard::Event(event)) = ours.hear() else { panic!("nothing was heard") };
        assert_eq!((event.name.as_str(), &event.fields["reason"]), ("closed", &"stopped".into()));
        assert!(matches!(ours.hear(), Ok(Heard::Ended)));
    }
}
