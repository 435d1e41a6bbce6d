//! The messages of read(2), taken into memory of the caller's choice.
//!
//! A discard that was read goes ahead at once, so a reader that dies with it has lost it. Read into memory that outlives the
//! process, it is still there: who comes after applies what lies there. The `userfaultfd` crate reads into its own.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};

use super::Event;

/// How many messages one read takes.
pub const MESSAGES: usize = 64;

/// Words of `struct uffd_msg` of linux/userfaultfd.h: the kind in the first byte, then up to three words about it.
pub(super) const MESSAGE_WORDS: usize = 4;

/// Room for messages, made once.
pub struct Events(pub(super) Box<[AtomicU64]>);

impl Events {
    /// Room for as many as one read takes, in this process's own memory.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self((0..MESSAGES * MESSAGE_WORDS).map(|_| AtomicU64::new(0)).collect())
    }
}

/// The messages that lie there, left by a reader that did not come to apply them, or not all. Descriptors named in them
/// were that reader's.
///
/// # Errors
/// `InvalidData` when something else lies there.
pub fn left(room: &[AtomicU64]) -> io::Result<Vec<Event>> {
    room.chunks_exact(MESSAGE_WORDS).filter_map(|message| parse(message).transpose()).collect()
}

/// Says that everything that lies there has been applied.
pub fn forget(room: &[AtomicU64]) {
    // Not before what was done about them is written.
    room.chunks_exact(MESSAGE_WORDS).for_each(|message| message[0].store(0, Release));
}

/// A message; none where the first byte is 0.
pub(super) fn parse(message: &[AtomicU64]) -> io::Result<Option<Event>> {
    let word = |index: usize| message[index].load(Relaxed);
    Ok(Some(match word(0) as u8 {
        0 => return Ok(None),
        kind::PAGEFAULT => Event::Fault { address: word(2), write: word(1) & kind::FLAG_WRITE != 0 },
        kind::REMOVE => Event::Remove { start: word(1), end: word(2) },
        kind::UNMAP => Event::Unmap { start: word(1), end: word(2) },
        kind::REMAP => Event::Remap,
        kind::FORK => Event::Fork,
        other => {
            let what = format!("the userfaultfd sent a message of kind {other:#x}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }))
}

/// Closes the descriptor that came with the news of a fork: the copy's own userfaultfd.
pub(super) fn close_fork(message: &[AtomicU64]) {
    let raw = message[1].load(Relaxed) as u32 as i32;
    // SAFETY: the kernel has just put this descriptor into this process, nobody else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(raw) });
}

/// Numbers of linux/userfaultfd.h.
mod kind {
    pub const PAGEFAULT: u8 = 0x12;
    pub const FORK: u8 = 0x13;
    pub const REMAP: u8 = 0x14;
    pub const REMOVE: u8 = 0x15;
    pub const UNMAP: u8 = 0x16;
    pub const FLAG_WRITE: u64 = 1;
}
