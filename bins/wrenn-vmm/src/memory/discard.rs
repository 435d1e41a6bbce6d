//! Memory that the guest gave up goes back to the host.

use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{Discard, GuestMemory, PAGE, map};

pub(super) struct Discarder {
    memory: GuestMemory,
    /// The memory is a shared file of our own; a private view of another file otherwise.
    own: bool,
    /// Of the image: what was ever discarded.
    discarded: Arc<AtomicBitmap>,
}

impl Discarder {
    pub fn new(memory: &GuestMemory, own: bool, discarded: Arc<AtomicBitmap>) -> Self {
        Self { memory: memory.clone(), own, discarded }
    }
}

impl Discard for Discarder {
    fn discard(&self, address: u64, bytes: u64) -> io::Result<()> {
        let aligned = address.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
        let length = usize::try_from(bytes).ok().and_then(NonZeroUsize::new).filter(|_| aligned);
        let found = self.memory.to_region_addr(GuestAddress(address));
        let (Some(length), Some((region, MemoryRegionAddress(offset)))) = (length, found) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if bytes > region.len() - offset {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Marked first: should the kernel stop half-way, what is gone has been marked.
        region.bitmap().mark_dirty(offset as usize, length.get());
        self.discarded.mark_dirty(map::offset(GuestAddress(address)) as usize, length.get());
        let start = region.get_host_address(MemoryRegionAddress(offset)).map_err(io::Error::other)?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::InvalidInput)?;
        if self.own {
            // The kernel tells the page server first and waits until it has read of it.
            // SAFETY: the range lies inside a mapping of guest memory (checked above), which lives as long as
            // `self.memory`; its bytes are only accessed in ways that expect them to change.
            unsafe { madvise(start.cast(), length.get(), MmapAdvise::MADV_REMOVE) }?;
        } else {
            // Discarding a private page would bring the file's back: zeros go over it.
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
            let at = NonZeroUsize::new(start.as_ptr() as usize);
            // SAFETY: it replaces pages inside a mapping of guest memory (checked above) by pages of the same
            // protection, and the mapping is unmapped as a whole; its bytes are only accessed in ways that expect them
            // to change.
            unsafe { mmap_anonymous(at, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        }
        Ok(())
    }
}
