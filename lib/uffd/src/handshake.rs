//! The VMM's first and only message: the list of its regions, and its userfaultfd.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sys::fdpass::{self, Peer};
use sys::process::Process;
use sys::uffd::Uffd;

use crate::{Error, Region, RegionFault};

/// Longer than this no list of regions is.
const LONGEST: usize = 64 << 10;

/// A handshake under way. The message has no frame: it is complete when it is JSON and the descriptor is there.
#[derive(Debug)]
pub struct Handshake {
    stream: UnixStream,
    peer: Peer,
    process: Option<Process>,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    deadline: Instant,
    limit: Duration,
}

/// How far a handshake has come.
#[derive(Debug)]
pub enum Greeting {
    /// More is to come.
    Waiting,
    /// The peer went without having said anything: somebody looked whether the socket works.
    Nothing,
    /// The VMM's memory.
    Done(Vec<Region>, Uffd),
}

impl Handshake {
    /// Begins with a connection, non-blocking, that must say all within `limit`.
    ///
    /// # Errors
    /// When the kernel does not say who it is.
    pub fn new(stream: UnixStream, limit: Duration) -> io::Result<Self> {
        let peer = fdpass::peer(&stream)?;
        // Now, as its pid may be another's by the time it is wanted.
        let process = fdpass::peer_process(&stream)?;
        Ok(Self {
            stream,
            peer,
            process,
            bytes: Vec::new(),
            fds: Vec::new(),
            deadline: Instant::now() + limit,
            limit,
        })
    }

    /// Who connected.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The process that connected, unless it has ended or cannot be seen from here.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref().filter(|process| process.is_alive())
    }

    /// When it has taken too long.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The connection, to poll.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the peer has handed over a descriptor: if so its memory is ours to fill, whatever else is wrong.
    pub fn has_descriptor(&self) -> bool {
        !self.fds.is_empty()
    }

    /// Takes in what has arrived, and has the kernel refuse what comes later: nobody would hear it.
    pub(crate) fn cut_off(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Read);
        let _ = self.advance();
    }

    /// Takes in what has arrived.
    ///
    /// # Errors
    /// What is wrong with the message, or that it is late.
    pub fn advance(&mut self) -> Result<Greeting, Error> {
        let wrong = |what: &str| Error::Handshake { what: what.to_owned() };
        loop {
            let mut buffer = [0; 4096];
            match fdpass::receive(&self.stream, &mut buffer) {
                Ok(received) => {
                    self.bytes.extend_from_slice(&buffer[..received.bytes]);
                    self.fds.extend(received.fds);
                    match received.bytes {
                        0 if self.bytes.is_empty() && self.fds.is_empty() => return Ok(Greeting::Nothing),
                        0 => return self.parsed()?.ok_or_else(|| wrong(self.lacks())),
                        _ => {}
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && self.bytes.is_empty() => {
                    return Ok(Greeting::Nothing);
                }
                Err(error) => return Err(wrong(&format!("cannot be read: {error}"))),
            }
            if self.bytes.len() > LONGEST {
                return Err(wrong(&format!("is longer than {LONGEST} bytes")));
            }
        }
        if let Some(done) = self.parsed()? {
            return Ok(done);
        }
        match Instant::now() >= self.deadline {
            true => Err(Error::HandshakeLate { seconds: self.limit.as_secs_f64(), what: self.lacks() }),
            false => Ok(Greeting::Waiting),
        }
    }

    /// The handshake if all of it is there. A message that can never become one is an error at once.
    fn parsed(&mut self) -> Result<Option<Greeting>, Error> {
        let regions = match Region::parse_list(&self.bytes) {
            // Nobody could tell when it ends, nor stop it.
            Ok(_) if self.peer.pid == 0 => {
                let what =
                    "comes from a process that cannot be seen from here (another pid namespace)".into();
                return Err(Error::Handshake { what });
            }
            Ok(regions) => regions,
            Err(RegionFault::Incomplete) => return Ok(None),
            Err(RegionFault::Wrong(what)) => return Err(Error::Handshake { what }),
        };
        match self.fds.len() {
            0 => return Ok(None),
            1 => {}
            more => return Err(Error::Handshake { what: format!("came with {more} descriptors, not one") }),
        }
        let Some(fd) = self.fds.first() else { return Ok(None) };
        // A copy: that there was a descriptor must still be known when it turns out to be a wrong one.
        let uffd = fd.try_clone().and_then(Uffd::from_fd);
        let uffd = uffd.map_err(|error| Error::Handshake { what: format!("is unusable: {error}") })?;
        Ok(Some(Greeting::Done(regions, uffd)))
    }

    fn lacks(&self) -> &'static str {
        match Region::parse_list(&self.bytes) {
            Ok(_) => "came without the userfaultfd's descriptor",
            Err(_) => "is cut short",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::{AsFd, BorrowedFd};

    const MESSAGE: &[u8] = br#"[{"base_host_virt_addr":4096,"size":8192,"offset":0,"page_size":4096}]"#;

    fn begin() -> (UnixStream, Handshake) {
        let (vmm, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        (vmm, Handshake::new(server, Duration::from_secs(10)).unwrap())
    }

    fn uffd() -> Option<Uffd> {
        let skip = |error: &io::Error| {
            wrenn_tests::skip::here(format!("no userfaultfd for this user: {error}"));
        };
        Uffd::create().inspect_err(skip).ok()
    }

    fn refusal(handshake: &mut Handshake) -> String {
        handshake.advance().unwrap_err().to_string()
    }

    #[test]
    fn it_is_complete_when_both_the_last_byte_and_the_descriptor_are_there() {
        let Some(uffd) = uffd() else { return };
        // The message a byte at a time, the descriptor with each of its bytes in turn.
        for with in [0, 1, 20, MESSAGE.len() - 1] {
            let (vmm, mut handshake) = begin();
            for (index, byte) in MESSAGE.iter().enumerate() {
                assert!(matches!(handshake.advance().unwrap(), Greeting::Waiting), "{index}");
                let fds: &[BorrowedFd] = if index == with { &[uffd.as_fd()] } else { &[] };
                fdpass::send(&vmm, &[*byte], fds).unwrap();
            }
            let Greeting::Done(regions, _) = handshake.advance().unwrap() else { panic!("not done") };
            assert_eq!(regions, Region::parse_list(MESSAGE).unwrap());
        }
    }

    #[test]
    fn a_descriptor_may_come_after_the_whole_message() {
        let Some(uffd) = uffd() else { return };
        let (mut vmm, mut handshake) = begin();
        vmm.write_all(MESSAGE).unwrap();
        assert!(matches!(handshake.advance().unwrap(), Greeting::Waiting));
        fdpass::send(&vmm, b"\n", &[uffd.as_fd()]).unwrap();
        assert!(matches!(handshake.advance().unwrap(), Greeting::Done(..)));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (mut vmm, mut handshake) = begin();
        vmm.write_all(&MESSAGE[..30]).unwrap();
        assert!(matches!(handshake.advance().unwrap(), Greeting::Waiting));
        drop(vmm);
        assert_eq!(refusal(&mut handshake), "the VMM's handshake is cut short");

        let (mut vmm, mut handshake) = begin();
        vmm.write_all(MESSAGE).unwrap();
        drop(vmm);
        assert!(refusal(&mut handshake).contains("without the userfaultfd's descriptor"));

        let (mut vmm, mut handshake) = begin();
        vmm.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(refusal(&mut handshake).contains("is not JSON"));

        let (vmm, mut handshake) = begin();
        fdpass::send(&vmm, MESSAGE, &[vmm.as_fd()]).unwrap();
        assert!(refusal(&mut handshake).contains("no userfaultfd"));
        assert!(handshake.has_descriptor());

        let (vmm, mut handshake) = begin();
        fdpass::send(&vmm, MESSAGE, &[vmm.as_fd(), vmm.as_fd()]).unwrap();
        assert!(refusal(&mut handshake).contains("2 descriptors"));
    }

    #[test]
    fn a_message_without_end_is_refused() {
        let (mut vmm, mut handshake) = begin();
        vmm.set_nonblocking(true).unwrap();
        let error = loop {
            match vmm.write(&[b' '; 4096]) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            match handshake.advance() {
                Ok(Greeting::Waiting) => {}
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("longer than"), "{error}");
    }

    #[test]
    fn one_who_connects_and_says_nothing_is_no_vmm() {
        let (vmm, mut handshake) = begin();
        drop(vmm);
        assert!(matches!(handshake.advance().unwrap(), Greeting::Nothing));
    }

    #[test]
    fn a_late_one_is_refused() {
        let (mut vmm, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(server, Duration::ZERO).unwrap();
        vmm.write_all(&MESSAGE[..10]).unwrap();
        assert!(matches!(handshake.advance(), Err(Error::HandshakeLate { what: "is cut short", .. })));
    }
}
