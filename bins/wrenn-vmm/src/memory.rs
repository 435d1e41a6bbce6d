//! The guest's memory.

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

/// Size of a page, bytes: the unit of dirty logs and snapshots.
pub const PAGE: u64 = 4096;

/// The guest's memory as devices see it. A write through it marks the page in its region's bitmap: the devices' dirty log.
/// Cheap to clone.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

/// Takes memory that the guest gave up back to the host.
pub trait Discard: Send + Sync {
    /// Discards a range, page-aligned: it reads as zeros from here on, its pages count as written, and a page server
    /// that the memory is registered with is told by a REMOVE.
    ///
    /// # Errors
    /// What the kernel said; `InvalidInput` for a range that is not all memory.
    fn discard(&self, address: u64, bytes: u64) -> std::io::Result<()>;
}
