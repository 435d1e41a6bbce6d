//! Memory made: one file of our own, or a private view of a memory file.

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap};

use super::{Error, GuestMemory, PAGE};
use crate::layout;

/// Zeros in a memfd, shared by all its mappings, and the memfd.
pub(super) fn fresh(bytes: u64) -> Result<(GuestMemory, File), Error> {
    let make = || {
        let file = File::from(memfd_create("guest-memory", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(bytes)?;
        let twin = file.try_clone()?;
        Ok((file, twin))
    };
    let (file, twin) = make().map_err(|source| Error::Make { bytes, source })?;
    Ok((map(twin, bytes, libc::MAP_SHARED)?, file))
}

/// The file's content, in private.
pub(super) fn of_file(bytes: u64, path: &Path) -> Result<GuestMemory, Error> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    let found = file.metadata().map_err(Error::file("open", path))?.len();
    if found != bytes {
        return Err(Error::Size { path: path.into(), found, expected: bytes });
    }
    map(file, bytes, libc::MAP_PRIVATE)
}

fn map(file: File, bytes: u64, flags: i32) -> Result<GuestMemory, Error> {
    let file = Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::new();
    for (base, size) in layout::regions(bytes) {
        let page = NonZeroUsize::new(PAGE as usize).expect("a page is not empty");
        let mapping =
            MmapRegionBuilder::new_with_bitmap(size as usize, AtomicBitmap::new(size as usize, page))
                .with_file_offset(FileOffset::from_arc(file.clone(), offset))
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(flags | libc::MAP_NORESERVE)
                .build()
                .map_err(|error| Error::Map { bytes, why: error.to_string() })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base));
        regions
            .push(region.ok_or_else(|| Error::Map { bytes, why: "it ends past the last address".into() })?);
        offset += size;
    }
    GuestMemory::from_regions(regions).map_err(|error| Error::Map { bytes, why: error.to_string() })
}

const HOLE: u64 = layout::HOLE.end - layout::HOLE.start;

/// The guest-physical address of an offset in the image.
pub(super) fn address(offset: u64) -> GuestAddress {
    GuestAddress(if offset < layout::HOLE.start { offset } else { offset + HOLE })
}

/// The offset in the image of a guest-physical address that is memory.
pub(super) fn offset(address: GuestAddress) -> u64 {
    if address.0 < layout::HOLE.end { address.0 } else { address.0 - HOLE }
}
