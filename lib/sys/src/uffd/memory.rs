//! The other side of a userfaultfd: memory that somebody else fills. A VMM's guest memory, in small; tests and benches
//! stand in for a VMM with it.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

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
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let mut flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        if huge {
            flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB;
        }
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
