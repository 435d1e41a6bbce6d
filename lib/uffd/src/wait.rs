//! Waiting: for a VMM's faults, which come often, and for everything else, which comes rarely and shares one descriptor,
//! so that a fault pays for two in its poll and not for all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;

/// What comes rarely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rare {
    /// The VMM has ended.
    Exit = 1,
    /// The guardian says something, or has ended.
    Guardian = 2,
    /// SIGINT or SIGTERM.
    Signal = 4,
    /// A verb asks.
    Control = 8,
    /// Another thread of this server has something to say.
    Mail = 16,
}

/// What a wait has found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready {
    /// The VMM's descriptor is readable.
    pub vmm: bool,
    rare: u64,
}

impl Ready {
    pub fn has(self, what: Rare) -> bool {
        self.rare & what as u64 != 0
    }
}

/// The rare ones. A descriptor that no other process has leaves by being closed.
#[derive(Debug)]
pub(crate) struct Waiter(Epoll);

impl Waiter {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    pub fn add(&self, fd: impl AsFd, what: Rare) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, what as u64))?)
    }

    pub fn forget(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.0.delete(fd)?)
    }

    /// Waits for the VMM's descriptor or any other, at most so long.
    pub fn wait(&self, vmm: BorrowedFd<'_>, limit: Option<Duration>) -> io::Result<Ready> {
        let mut fds = [PollFd::new(vmm, PollFlags::POLLIN), PollFd::new(self.0.0.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, limit.map(TimeSpec::from_duration), None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno.into()),
        }
        let rare = if fds[1].any() == Some(true) { self.rare(EpollTimeout::ZERO)? } else { 0 };
        Ok(Ready { vmm: fds[0].any() == Some(true), rare })
    }

    /// Waits for any of the rare ones.
    pub fn wait_rare(&self) -> io::Result<Ready> {
        Ok(Ready { vmm: false, rare: self.rare(EpollTimeout::NONE)? })
    }

    fn rare(&self, limit: EpollTimeout) -> io::Result<u64> {
        let mut events = [EpollEvent::empty(); 16];
        match self.0.wait(&mut events, limit) {
            Ok(count) => Ok(events[..count].iter().fold(0, |rare, event| rare | event.data())),
            Err(Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }
}
