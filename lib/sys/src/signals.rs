//! SIGINT and SIGTERM as something to ask for rather than something that strikes: both are blocked and read, so
//! that a verb can undo its work before the program ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};

static FD: OnceLock<SignalFd> = OnceLock::new();
static SEEN: AtomicI32 = AtomicI32::new(0);
/// Readable for ever once a signal was read.
static ANY: OnceLock<EventFd> = OnceLock::new();

fn set() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set
}

/// Blocks SIGINT and SIGTERM in this thread and those it starts later. Call it first in `main`.
///
/// # Errors
/// What sigprocmask or signalfd said.
pub fn block() -> io::Result<()> {
    set().thread_block()?;
    let fd = SignalFd::with_flags(&set(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let _ = FD.set(fd);
    let _ = ANY.set(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    Ok(())
}

/// The signal that asked this program to end, if one has. It stays set.
pub fn pending() -> Option<i32> {
    if SEEN.load(Ordering::Relaxed) == 0
        && let Some(fd) = FD.get()
        && let Ok(Some(info)) = fd.read_signal()
    {
        SEEN.store(info.ssi_signo as i32, Ordering::Relaxed);
        // Cannot fail: the counter is far from full.
        let _ = ANY.get().map(|any| any.write(1));
    }
    match SEEN.load(Ordering::Relaxed) {
        0 => None,
        signal => Some(signal),
    }
}

/// A descriptor that becomes readable when such a signal arrives, for `poll`. `None` before [`block`].
/// After it was readable, [`pending`] says which signal it was.
pub fn fd() -> Option<BorrowedFd<'static>> {
    FD.get().map(|fd| fd.as_fd())
}

/// A descriptor that becomes and stays readable when [`pending`] has seen a signal, in whatever thread: where others may
/// read the signal first, wait for both. `None` before [`block`].
pub fn seen_fd() -> Option<BorrowedFd<'static>> {
    ANY.get().map(|any| any.as_fd())
}

/// Ends the program by the signal that asked for it, as its parent expects to see. Returns only if none did.
pub fn end_by_pending() {
    if let Some(signal) = pending().and_then(|number| Signal::try_from(number).ok()) {
        let _ = raise(signal);
        let _ = set().thread_unblock();
    }
}
