//! Memory that outlives the process that writes it: a memfd, mapped. Whoever holds the descriptor finds everything as the
//! last writer left it, whatever became of that one.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mlock, mmap, munmap};

/// A memfd and the mapping of its first bytes. It never becomes shorter. It is reached by atomic loads and stores alone, as
/// another process may have it mapped too.
#[derive(Debug)]
pub struct Shared {
    start: NonNull<u64>,
    words: usize,
    file: File,
}

// SAFETY: the mapping belongs to this value, and every access to it is atomic or a system call.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Makes one of so many words of 8 bytes, all 0. Pages that nobody writes take no memory.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create(name: &str, words: usize) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        file.set_len(words as u64 * 8)?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        Self::map(file, words)
    }

    /// Maps the first words of one that another process made.
    ///
    /// # Errors
    /// `InvalidInput` when it is shorter, or may become so; what the kernel said.
    pub fn open(fd: OwnedFd, words: usize) -> io::Result<Self> {
        let file = File::from(fd);
        let seals = SealFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        let long_enough = file.metadata()?.len() / 8 >= words as u64;
        match long_enough && seals.contains(SealFlag::F_SEAL_SHRINK) {
            true => Self::map(file, words),
            false => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn map(file: File, words: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(words * 8).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping where the kernel likes: it replaces nothing. The file is sealed against shrinking.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { start: start.cast(), words, file })
    }

    /// Keeps the first words in memory, so that writing them takes no page fault. Best effort.
    pub fn pin(&self, words: usize) {
        // SAFETY: the range is inside this mapping.
        let _ = unsafe { mlock(self.start.cast(), words.min(self.words) * 8) };
    }

    /// What is mapped.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, aligned and alive as long as `self`; only atomics and the kernel refer to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.words) }
    }

    /// The same as twice as many halves.
    pub fn halves(&self) -> &[AtomicU32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.words * 2) }
    }

    /// The memfd, to write behind what is mapped.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference to it outlives the value.
        let _ = unsafe { munmap(self.start.cast(), self.words * 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn who_opens_the_descriptor_finds_what_was_written() {
        let first = Shared::create("test", 1000).unwrap();
        first.words()[999].store(7, Relaxed);
        let fd = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        let second = Shared::open(fd, 1000).unwrap();
        assert_eq!((second.words()[999].load(Relaxed), second.halves().len()), (7, 2000));
    }

    #[test]
    fn a_file_that_is_too_short_or_may_become_so_is_refused() {
        let short = Shared::create("test", 10).unwrap();
        assert!(Shared::open(short.as_fd().try_clone_to_owned().unwrap(), 1000).is_err());
        let loose = memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
        File::from(loose.try_clone().unwrap()).set_len(80).unwrap();
        assert!(Shared::open(loose, 10).is_err());
    }
}
