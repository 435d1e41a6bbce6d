//! The other side of a userfaultfd: memory that somebody else fills. A VMM's guest memory, in small; tests and benches
//! stand in for a VMM with it, and so does `wrenn-uffd check`.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// A private anonymous mapping. Its bytes may be filled, discarded and written by anybody at any time, so they are only
/// reached by atomic loads and stores.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value, and every access to it is atomic or a system call.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `length` bytes, a multiple of the page size; of huge pages of 2 MiB if `huge`.
    ///
    /// # Errors
    /// What `mmap(2)` said: `ENOMEM` when there are no such huge pages.
    pub fn map(length: usize, huge: bool) -> io::Result<Self> {
        match huge {
            true => Self::of(length, MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB),
            false => Self::of(length, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE),
        }
    }

    /// Maps `length` bytes, a multiple of the page size, of shared memory, as a VMM has it whose memory others map, too.
    ///
    /// # Errors
    /// What `mmap(2)` said.
    pub fn map_shared(length: usize) -> io::Result<Self> {
        Self::of(length, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE)
    }

    fn of(length: usize, flags: MapFlags) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping where the kernel likes: it replaces nothing.
        let start =
            unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Self { start: start.cast(), length })
    }

    /// Address of the first byte.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Reads the byte at `offset`, waiting until its page is filled.
    pub fn load(&self, offset: usize) -> u8 {
        self.byte(offset).load(Ordering::Relaxed)
    }

    /// Writes the byte at `offset`, waiting until its page is filled.
    pub fn store(&self, offset: usize, value: u8) {
        self.byte(offset).store(value, Ordering::Relaxed);
    }

    /// Reads `into.len()` bytes, a multiple of 8, from `offset`, another one.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        for (index, chunk) in into.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&self.word(offset + index * 8).load(Ordering::Relaxed).to_ne_bytes());
        }
    }

    /// Discards whole pages, as a balloon does. Waits until whoever fills this memory has read the news.
    ///
    /// # Errors
    /// What `madvise(2)` said.
    pub fn discard(&self, offset: usize, length: usize) -> io::Result<()> {
        let start = self.checked(offset, length);
        // SAFETY: the range lies inside this mapping; nothing else than atomic accesses refers to its bytes.
        unsafe { madvise(start.cast(), length, MmapAdvise::MADV_DONTNEED) }.map_err(Into::into)
    }

    /// Has the kernel read from this memory: writes up to `length` bytes from `offset` on to `file`, waiting for the pages
    /// that are missing. Returns how many.
    ///
    /// # Errors
    /// What `write(2)` said.
    pub fn write_out(&self, offset: usize, length: usize, file: impl AsFd) -> io::Result<usize> {
        let start = self.checked(offset, length);
        // SAFETY: the range lies inside this mapping, and the kernel copes with bytes that change while it reads them.
        let done = unsafe { libc::write(file.as_fd().as_raw_fd(), start.as_ptr().cast(), length) };
        Ok(Errno::result(done)? as usize)
    }

    /// Has the kernel write to this memory: reads up to `length` bytes from `file` to `offset`, waiting for the pages that are
    /// missing. Returns how many.
    ///
    /// # Errors
    /// What `read(2)` said.
    pub fn read_in(&self, offset: usize, length: usize, file: impl AsFd) -> io::Result<usize> {
        let start = self.checked(offset, length);
        // SAFETY: the range lies inside this mapping, and nothing but atomic accesses refers to its bytes.
        let done = unsafe { libc::read(file.as_fd().as_raw_fd(), start.as_ptr().cast(), length) };
        Ok(Errno::result(done)? as usize)
    }

    /// Unmaps whole pages, as a VMM does that takes memory away. Nothing else ever gets their addresses: who touches one
    /// gets SIGSEGV.
    ///
    /// # Errors
    /// What `mmap(2)` said.
    pub fn give_up(&self, offset: usize, length: usize) -> io::Result<()> {
        let start = self.checked(offset, length);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the range lies inside this mapping, which is replaced there by one that cannot be accessed at all. It goes
        // with the rest.
        let done = unsafe { libc::mmap(start.as_ptr().cast(), length, libc::PROT_NONE, flags, -1, 0) };
        if done == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// What a forked copy of this process reads at `offset`. The copy waits for nothing and does nothing else.
    ///
    /// # Errors
    /// What `fork(2)` said; `Other` when the copy was ended by a signal.
    pub fn load_in_fork(&self, offset: usize) -> io::Result<u8> {
        let byte = self.byte(offset);
        // SAFETY: the child only loads a byte and calls _exit, both async-signal-safe.
        match unsafe { fork() }? {
            // SAFETY: _exit ends the child without running anything of this process.
            ForkResult::Child => unsafe { libc::_exit(i32::from(byte.load(Ordering::Relaxed))) },
            ForkResult::Parent { child } => match waitpid(child, None)? {
                WaitStatus::Exited(_, value) => Ok(value as u8),
                other => Err(io::Error::other(format!("the forked copy ended otherwise: {other:?}"))),
            },
        }
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: inside the mapping (checked), which lives as long as `self`; only atomics refer to it.
        unsafe { AtomicU8::from_ptr(self.checked(offset, 1).as_ptr()) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        let at = self.checked(offset, 8);
        assert!(offset.is_multiple_of(8), "a word's offset is a multiple of 8, not {offset}");
        // SAFETY: inside the mapping (checked) and aligned, as mappings start on a page; only atomics refer to it.
        unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) }
    }

    fn checked(&self, offset: usize, length: usize) -> NonNull<u8> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= self.length), "outside the mapping");
        // SAFETY: `offset` is inside the mapping.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference to it outlives the value.
        let _ = unsafe { munmap(self.start.cast(), self.length) };
    }
}
