//! The kernel's image: an ELF vmlinux or a bzImage, told apart by how they begin.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::Error;
use crate::layout;
use crate::memory::GuestMemory;

/// The 64-bit entry point of a bzImage, bytes from where it is loaded.
const ENTRY_64: u64 = 0x200;
/// The setup header's flag that there is one. (XLF_KERNEL_64)
const KERNEL_64: u16 = 1;

/// A kernel in memory.
pub struct Kernel {
    /// Where it is entered.
    pub entry: u64,
    /// What it will have used, up to here, when it has unpacked itself.
    pub(super) end: u64,
    /// A bzImage's own description of itself.
    pub(super) header: Option<setup_header>,
}

/// Loads the kernel where it wants to be.
///
/// # Errors
/// When it is none, or does not fit.
pub fn load(path: &Path, memory: &GuestMemory) -> Result<Kernel, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let broken = |reason: String| Error::Kernel { path: path.to_owned(), reason };
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = [0; 4];
    let read = file.read(&mut magic).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let lowest = Some(GuestAddress(layout::KERNEL));
    if &magic[..read] == b"\x7fELF" {
        let loaded = Elf::load(memory, None, &mut file, lowest).map_err(|error| broken(explain(&error)))?;
        return Ok(Kernel { entry: loaded.kernel_load.raw_value(), end: loaded.kernel_end, header: None });
    }
    let loaded = BzImage::load(memory, None, &mut file, lowest).map_err(|error| broken(explain(&error)))?;
    let header = loaded.setup_header.ok_or_else(|| broken("it has no setup header".into()))?;
    if header.version < 0x020c || header.xloadflags & KERNEL_64 == 0 {
        return Err(broken("it has no 64-bit entry point (boot protocol 2.12)".into()));
    }
    let load = loaded.kernel_load.raw_value();
    // It unpacks itself where it prefers to be, or higher when it is loaded higher.
    let end =
        header.pref_address.max(load).saturating_add(u64::from(header.init_size)).max(loaded.kernel_end);
    Ok(Kernel { entry: load + ENTRY_64, end, header: Some(header) })
}

fn explain(error: &loader::Error) -> String {
    match error {
        loader::Error::Bzimage(
            loader::bzimage::Error::InvalidBzImage | loader::bzimage::Error::Underflow,
        ) => "neither an ELF vmlinux nor a bzImage".into(),
        loader::Error::Elf(loader::elf::Error::ReadKernelImage)
        | loader::Error::Bzimage(loader::bzimage::Error::ReadBzImageCompressedKernel) => {
            "it is cut short, or too large for the guest's memory".into()
        }
        other => other.to_string(),
    }
}

/// Reads exactly that many bytes of a file into memory.
///
/// # Errors
/// When the file is shorter or memory is missing.
pub fn read_into(memory: &GuestMemory, address: u64, file: &mut File, bytes: u64) -> io::Result<()> {
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    memory.read_exact_volatile_from(GuestAddress(address), file, length).map_err(io::Error::other)
}
