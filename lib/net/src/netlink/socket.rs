//! A netlink socket: several requests in one send, each acknowledged.
//!
//! The kernel works through all requests of a send before the system call returns: a signal cannot come between them,
//! not even SIGKILL.

use std::io;
use std::time::Instant;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket as Raw, SocketAddr};

use crate::Error;

// linux/netlink.h
const HEADER: usize = 16;
pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// linux/rtnetlink.h: the group that hears of every interface made, changed or removed.
const RTNLGRP_LINK: u32 = 1;

/// One message to the kernel.
#[derive(Debug)]
pub(crate) struct Request {
    /// What it does, to name it when the kernel refuses: "make the veth pair wrenn-v-7".
    pub what: String,
    /// Its type.
    pub kind: u16,
    /// Its flags, without NLM_F_REQUEST.
    pub flags: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

/// One message from the kernel.
#[derive(Debug)]
pub(crate) struct Answer {
    pub kind: u16,
    pub body: Vec<u8>,
}

/// A socket in the network namespace that the calling thread was in when it opened it.
pub(crate) struct Socket {
    raw: Raw,
    sequence: u32,
}

impl Socket {
    /// For links, addresses and routes.
    pub fn route() -> Result<Self, Error> {
        Self::open(NETLINK_ROUTE).map_err(Error::refused("open a route netlink socket"))
    }

    /// For nftables.
    pub fn netfilter() -> Result<Self, Error> {
        Self::open(NETLINK_NETFILTER)
            .map_err(|source| Error::NoNftables { what: "open a netfilter netlink socket".into(), source })
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        raw.set_ext_ack(true)?;
        // The answers are queued by the time that send returns: waiting for one that is not would be for ever.
        raw.set_non_blocking(true)?;
        Ok(Self { raw, sequence: 0 })
    }

    /// Sends the requests together and checks that each that asks for it (NLM_F_ACK) was done. On a refusal the others
    /// may have been done all the same, unless they are a netfilter batch.
    pub fn send(&mut self, requests: &[Request]) -> Result<(), Error> {
        let first = self.post(requests)?;
        let what = |sequence: u32| {
            requests.get(sequence.wrapping_sub(first) as usize).map(|request| request.what.as_str())
        };
        let mut wanted = requests.iter().filter(|request| request.flags & NLM_F_ACK != 0).count();
        while wanted > 0 {
            for message in self.receive()? {
                if let Some(refusal) = message.refusal() {
                    refusal.check(what(message.sequence).unwrap_or("send netlink messages"))?;
                    wanted = wanted.saturating_sub(1);
                }
            }
        }
        Ok(())
    }

    /// Sends one request and returns the kernel's answers, of a dump (NLM_F_DUMP) all.
    pub fn ask(&mut self, request: Request) -> Result<Vec<Answer>, Error> {
        let dump = request.flags & NLM_F_DUMP == NLM_F_DUMP;
        self.post(std::slice::from_ref(&request))?;
        let mut answers = Vec::new();
        loop {
            for message in self.receive()? {
                if message.kind == NLMSG_DONE {
                    return Ok(answers);
                }
                match message.refusal() {
                    Some(refusal) => refusal.check(&request.what)?,
                    None => answers.push(Answer { kind: message.kind, body: message.body }),
                }
            }
            if !dump {
                return Ok(answers);
            }
        }
    }

    /// Hears of every interface that is made, changed or removed from now on.
    pub fn hear_links(&mut self) -> Result<(), Error> {
        self.raw.add_membership(RTNLGRP_LINK).map_err(Error::refused("listen to changes of interfaces"))
    }

    /// Sends one request from a process apart, which is the one to wait for the kernel's answer.
    pub fn send_apart(&mut self, request: &Request) -> Result<(), Error> {
        let mut bytes = Vec::new();
        encode(&mut bytes, request, 0);
        sys::apart::send(&self.raw, &bytes).map_err(Error::refused(request.what.clone()))
    }

    /// Waits at most until `deadline` for the next messages, which nobody asked for. `None` when none came, and when
    /// some came and were lost (ENOBUFS).
    pub fn hear(&mut self, deadline: Instant) -> Result<Option<Vec<Answer>>, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if !sys::process::readable(&self.raw, left).map_err(Error::refused("wait for the kernel"))? {
            return Ok(None);
        }
        let heard = self.receive().ok();
        Ok(heard.map(|all| all.into_iter().map(|one| Answer { kind: one.kind, body: one.body }).collect()))
    }

    /// Returns the sequence number of the first; the others follow.
    fn post(&mut self, requests: &[Request]) -> Result<u32, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(4096);
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            encode(&mut bytes, request, self.sequence);
        }
        match self.raw.send(&bytes, 0) {
            Ok(sent) if sent == bytes.len() => Ok(first),
            Ok(_) => Err(Error::refused("send netlink messages")(io::ErrorKind::WriteZero.into())),
            Err(error) => Err(Error::refused("send netlink messages")(error)),
        }
    }

    fn receive(&mut self) -> Result<Vec<Message>, Error> {
        let (bytes, _) =
            self.raw.recv_from_full().map_err(Error::refused("read the kernel's netlink answer"))?;
        Ok(messages(&bytes))
    }
}

fn encode(bytes: &mut Vec<u8>, request: &Request, sequence: u32) {
    let length = (HEADER + request.body.len()) as u32;
    bytes.extend(length.to_ne_bytes());
    bytes.extend(request.kind.to_ne_bytes());
    bytes.extend((request.flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(&request.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[derive(Debug)]
struct Message {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: Vec<u8>,
}

/// An NLMSG_ERROR message; errno 0 is an acknowledgement.
struct Refusal {
    errno: i32,
    hint: Option<String>,
}

impl Refusal {
    fn check(self, what: &str) -> Result<(), Error> {
        if self.errno == 0 {
            return Ok(());
        }
        let source = io::Error::from_raw_os_error(self.errno);
        Err(Error::Refused { what: what.to_owned(), hint: self.hint, source })
    }
}

impl Message {
    fn refusal(&self) -> Option<Refusal> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        let errno = -(u32_at(&self.body, 0)? as i32);
        // The message it answers follows: header only if capped, or if there was no error. Then attributes.
        let capped = self.flags & NLM_F_CAPPED != 0 || errno == 0;
        let original = if capped { HEADER } else { (u32_at(&self.body, 4)? as usize).next_multiple_of(4) };
        let hint = (self.flags & NLM_F_ACK_TLVS != 0)
            .then(|| attributes(self.body.get(4 + original..)?).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
            .flatten()
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
        Some(Refusal { errno, hint })
    }
}

fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u32_at(bytes, 4))
        && let Some(body) = bytes.get(HEADER..length as usize)
        && let Some(sequence) = u32_at(bytes, 8)
    {
        let [low, high] = [kind as u16, (kind >> 16) as u16];
        let (kind, flags) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        messages.push(Message { kind, flags, sequence, body: body.to_vec() });
        bytes = bytes.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The attributes that `bytes` are, up to the first that does not fit.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &[u8]) -> Request {
        Request { what: "try".into(), kind: 16, flags: NLM_F_ACK, body: body.to_vec() }
    }

    #[test]
    fn a_message_reads_back_as_written_and_the_next_one_is_aligned() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &request(b"hello"), 1);
        encode(&mut bytes, &request(b""), 2);
        assert_eq!(bytes.len(), 24 + 16);
        let read = messages(&bytes);
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].sequence, read[0].kind, read[0].body.as_slice()), (1, 16, b"hello".as_slice()));
        assert_eq!(read[0].flags, NLM_F_REQUEST | NLM_F_ACK);
        assert_eq!(read[1].sequence, 2);
    }

    #[test]
    fn bytes_that_are_cut_short_end_the_list_and_nothing_else() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &request(b"hello"), 1);
        encode(&mut bytes, &request(b"world"), 2);
        for cut in 0..bytes.len() {
            assert!(messages(&bytes[..cut]).len() <= 2);
        }
        // A length below the header's own would never end.
        assert!(messages(&[0; 64]).is_empty());
        assert!(messages(&[0xff; 64]).is_empty());
    }

    #[test]
    fn a_refusal_carries_the_kernels_number_and_words() {
        let mut body = (-17_i32).to_ne_bytes().to_vec();
        body.extend([0; HEADER]);
        let text = b"already there\0";
        body.extend((4 + text.len() as u16).to_ne_bytes());
        body.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        body.extend(text);
        let message = Message { kind: NLMSG_ERROR, flags: NLM_F_CAPPED | NLM_F_ACK_TLVS, sequence: 1, body };
        let refusal = message.refusal().unwrap();
        assert_eq!((refusal.errno, refusal.hint.as_deref()), (17, Some("already there")));
        let error = refusal.check("make it").unwrap_err();
        assert_eq!(error.to_string(), "cannot make it (already there)");
    }
}
