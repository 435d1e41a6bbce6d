//! userfaultfd(2): page faults of another process, answered from here.
//!
//! The `userfaultfd` crate does the work where it can. Its traps are handled here: its `into_raw_fd` closes the
//! descriptor, a refused copy arrives as a "partial copy" whose count is −EAGAIN cast to usize, and its `zeropage` loses
//! how far a call came before the kernel broke it off. What it cannot do is done here: reading messages into memory that
//! outlives the reader ([`messages`]), and UFFDIO_POISON.

mod memory;
pub mod messages;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use userfaultfd::{Error as Fault, FeatureFlags, UffdBuilder};

pub use memory::Memory;
pub use messages::Events;
use messages::MESSAGE_WORDS;

/// A userfaultfd.
#[derive(Debug)]
pub struct Uffd(userfaultfd::Uffd);

/// What happened to memory that is registered. Addresses are those of the process it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread waits for the page at this address.
    Fault {
        /// Anywhere in the page.
        address: u64,
        /// Whether it wants to write.
        write: bool,
    },
    /// The range is about to be discarded. It was held back until this was read.
    Remove {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
    },
    /// The range is about to be unmapped.
    Unmap {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
    },
    /// A range has moved to another address.
    Remap,
    /// The process has forked, and the copy's faults would want an answer too.
    Fork,
}

/// How far a request to fill memory came.
#[derive(Debug)]
pub enum Filled {
    /// So many bytes, from the start, are there and their waiters are awake. It may be fewer than were asked for.
    Bytes(usize),
    /// Nothing, as a discard is under way in that process: read events, then try again.
    Again,
    /// The first page is there already. **Nobody was woken.**
    Exists,
    /// The first page is no longer mapped, or no longer registered.
    Unmapped,
    /// The process is gone.
    Gone,
    /// The kernel refused otherwise.
    Failed(io::Error),
}

/// The faults that wait at a userfaultfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// All.
    pub faults: usize,
    /// Those that nobody has read.
    pub unread: usize,
}

impl Uffd {
    /// A new one for this process's own memory, as a VMM makes it: non-blocking, faults of the kernel included, and
    /// discards are told.
    ///
    /// # Errors
    /// `EPERM` or `EACCES` without CAP_SYS_PTRACE and /dev/userfaultfd; what `UFFDIO_API` said.
    pub fn create() -> io::Result<Self> {
        UffdBuilder::new()
            .close_on_exec(true)
            .non_blocking(true)
            .user_mode_only(false)
            .require_features(FeatureFlags::EVENT_REMOVE)
            .create()
            .map(Self)
            .map_err(io_error)
    }

    /// Takes over one that another process made, and makes it non-blocking: a blocking one cannot be polled.
    ///
    /// # Errors
    /// `InvalidInput` when the descriptor is something else.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if target.as_os_str() != "anon_inode:[userfaultfd]" {
            let what = format!("the descriptor is {}, no userfaultfd", target.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is a userfaultfd (checked above), and its owner hands it over.
        Ok(Self(unsafe { userfaultfd::Uffd::from_raw_fd(fd.into_raw_fd()) }))
    }

    /// Registers a range of `memory` for missing pages: whoever touches one waits until it is filled.
    ///
    /// # Errors
    /// What `UFFDIO_REGISTER` said.
    pub fn register(&self, memory: &Memory, offset: usize, length: usize) -> io::Result<()> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= memory.len()), "outside the mapping");
        let address = memory.address() as usize + offset;
        self.0.register(address as *mut _, length).map(drop).map_err(io_error)
    }

    /// Registers a range of this process's own memory for missing pages, as [`Self::register`] does. The range is whole
    /// pages of one mapping.
    ///
    /// # Safety
    /// From here on whoever holds a copy of this userfaultfd says what the pages that are missing hold. So nothing may
    /// refer to the range but accesses that expect it to change (volatile or atomic ones, system calls, a guest).
    ///
    /// # Errors
    /// What `UFFDIO_REGISTER` said.
    pub unsafe fn register_range(&self, address: u64, length: u64) -> io::Result<()> {
        self.0.register(address as *mut _, length as usize).map(drop).map_err(io_error)
    }

    /// Reads events until there are no more, and hands each to `each`, page faults ahead of older events.
    ///
    /// # Errors
    /// What `read(2)` said.
    pub fn drain(&self, events: &mut Events, each: impl FnMut(Event)) -> io::Result<()> {
        self.drain_into(&events.0, each)
    }

    /// The same by way of `room`, whole messages. There each message lies until `each` has returned for all that were read
    /// with it; see [`messages`].
    ///
    /// # Errors
    /// What `read(2)` said.
    pub fn drain_into(&self, room: &[AtomicU64], mut each: impl FnMut(Event)) -> io::Result<()> {
        let bytes = size_of_val(room);
        loop {
            // SAFETY: the kernel writes at most so many bytes into memory that is borrowed meanwhile and, being atomics, may
            // be written by others.
            let done = unsafe { libc::read(self.0.as_raw_fd(), room.as_ptr() as *mut _, bytes) };
            let read = match Errno::result(done) {
                Ok(read) => &room[..read as usize / 8],
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for message in read.chunks_exact(MESSAGE_WORDS) {
                let Some(event) = messages::parse(message)? else { continue };
                if event == Event::Fork {
                    messages::close_fork(message);
                }
                each(event);
            }
            messages::forget(read);
            // The kernel fills the room as long as it has something: a short read has met EAGAIN already.
            if read.len() < room.len() {
                return Ok(());
            }
        }
    }

    /// Fills the pages from `address` on with these bytes, whole pages, and wakes who waits for them. Only pages that are
    /// missing are ever written.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Filled {
        // SAFETY: the source is a live slice. The kernel writes only to missing pages of memory that its owner
        // registered with this userfaultfd, which is how the owner asks for it (see `Memory`).
        let done = unsafe { self.0.copy(bytes.as_ptr().cast(), address as *mut _, bytes.len(), true) };
        copied(done)
    }

    /// As [`Uffd::copy`], but wakes nobody.
    pub fn copy_quietly(&self, address: u64, bytes: &[u8]) -> Filled {
        // SAFETY: as in `copy`.
        let done = unsafe { self.0.copy(bytes.as_ptr().cast(), address as *mut _, bytes.len(), false) };
        copied(done)
    }

    /// Fills `length` bytes from `address` on with the kernel's page of zeros, and wakes who waits for them. Works on
    /// anonymous and shared memory, not on huge pages.
    pub fn zero(&self, address: u64, length: u64) -> Filled {
        let mut request = ZeroPage { start: address, length, mode: 0, zeroed: 0 };
        // SAFETY: the request outlives the call; the kernel reads it and writes its last field.
        match unsafe { uffdio_zeropage(self.0.as_raw_fd(), &raw mut request) } {
            Ok(_) => Filled::Bytes(length as usize),
            Err(Errno::EAGAIN) if request.zeroed > 0 => Filled::Bytes(request.zeroed as usize),
            Err(errno) => refused(errno),
        }
    }

    /// Makes the pages from `address` on, as far as they are missing, such that who touches one gets SIGBUS, and wakes who
    /// waits for them. Since Linux 6.6; before, `EINVAL`.
    pub fn poison(&self, address: u64, length: u64) -> Filled {
        let mut request = ZeroPage { start: address, length, mode: 0, zeroed: 0 };
        // SAFETY: the request outlives the call; the kernel reads it and writes its last field.
        match unsafe { uffdio_poison(self.0.as_raw_fd(), &raw mut request) } {
            Ok(_) => Filled::Bytes(length as usize),
            Err(Errno::EAGAIN) if request.zeroed > 0 => Filled::Bytes(request.zeroed as usize),
            Err(errno) => refused(errno),
        }
    }

    /// Wakes who waits for a page in the range; they fault again if it is not there.
    ///
    /// # Errors
    /// What `UFFDIO_WAKE` said.
    pub fn wake(&self, address: u64, length: u64) -> io::Result<()> {
        self.0.wake(address as *mut _, length as usize).map_err(io_error)
    }

    /// How many faults wait in all, read or not, and how many of them nobody has read yet. Works on any copy of it, without
    /// reading anything.
    ///
    /// # Errors
    /// What reading /proc said; `InvalidData` when it says something else.
    pub fn waiting(&self) -> io::Result<Waiting> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse().ok())
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name} in {text:?}")))
        };
        Ok(Waiting { faults: number("total:")?, unread: number("pending:")? })
    }

    /// Gives the range up: pages missing in it read as zeros from now on, without anybody being asked.
    ///
    /// # Errors
    /// What `UFFDIO_UNREGISTER` said.
    pub fn unregister(&self, address: u64, length: u64) -> io::Result<()> {
        self.0.unregister(address as *mut _, length as usize).map_err(io_error)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Brings a piece of a mapped file into the page cache and into this process's page table in one go, so that copying from
/// it takes no fault for every 64 KiB. Best effort: kernels before 5.14 do not know how.
pub fn populate(bytes: &[u8]) {
    let page = page_size();
    let start = bytes.as_ptr() as usize / page * page;
    let length = bytes.as_ptr() as usize + bytes.len() - start;
    // SAFETY: this advice only reads pages in: no content changes and nothing is unmapped.
    unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_POPULATE_READ) };
}

/// Bytes of this machine's ordinary page.
pub fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| size.try_into().ok())
        .unwrap_or(4096)
}

/// `struct uffdio_zeropage` of linux/userfaultfd.h; `struct uffdio_poison` is the same under another name.
#[repr(C)]
struct ZeroPage {
    start: u64,
    length: u64,
    mode: u64,
    zeroed: i64,
}

nix::ioctl_readwrite! {
    /// `UFFDIO_ZEROPAGE` of linux/userfaultfd.h.
    uffdio_zeropage, 0xAA, 0x04, ZeroPage
}

nix::ioctl_readwrite! {
    /// `UFFDIO_POISON` of linux/userfaultfd.h.
    uffdio_poison, 0xAA, 0x08, ZeroPage
}

fn copied(done: Result<usize, Fault>) -> Filled {
    match done {
        Ok(count) => Filled::Bytes(count),
        Err(Fault::PartiallyCopied(count)) if count as isize > 0 => Filled::Bytes(count),
        Err(Fault::PartiallyCopied(_)) => Filled::Again,
        Err(Fault::CopyFailed(errno)) => refused(Errno::from_raw(errno as i32)),
        Err(other) => Filled::Failed(io_error(other)),
    }
}

fn refused(errno: Errno) -> Filled {
    match errno {
        Errno::EAGAIN | Errno::EINTR => Filled::Again,
        Errno::EEXIST => Filled::Exists,
        Errno::ENOENT => Filled::Unmapped,
        Errno::ESRCH => Filled::Gone,
        other => Filled::Failed(other.into()),
    }
}

fn io_error(error: Fault) -> io::Error {
    match error {
        Fault::SystemError(errno) | Fault::CopyFailed(errno) | Fault::ZeropageFailed(errno) => {
            io::Error::from_raw_os_error(errno as i32)
        }
        Fault::OpenDevUserfaultfd(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
