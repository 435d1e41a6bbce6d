//! What a guest's memory and first vCPU hold when its kernel is entered: by the 64-bit boot protocol of Linux, for an ELF
//! vmlinux and a bzImage alike. (Linux, Documentation/arch/x86/boot.rst)

pub mod acpi;
mod cmdline;
mod kernel;
mod params;
mod registers;

use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::config::Config;
use crate::layout;
use crate::memory::GuestMemory;
use crate::virtio::Slot;

pub use kernel::Kernel;
pub use registers::enter;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to boot.
    #[error("no kernel: PUT /boot-source first")]
    NoKernel,
    /// A file could not be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A kernel of neither kind, or a damaged one.
    #[error("{path} is no kernel that can be booted: {reason}", path = path.display())]
    Kernel {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// They do not fit beside each other.
    #[error("{what} needs {bytes} bytes of memory, which the guest has not")]
    Room {
        /// What does not fit.
        what: String,
        /// Its size.
        bytes: u64,
    },
    /// The command line is too long or holds what no command line can.
    #[error("the kernel's command line: {0}")]
    CommandLine(String),
    /// What the kernel reads at its start cannot be written.
    #[error("the guest's memory cannot hold {0}")]
    Write(&'static str),
}

/// All of the BIOS: `mov al, 0xfe; out 0x64, al; hlt`, a reset by the keyboard controller. Where ACPI is hardware-reduced,
/// a Linux without `reboot=k` looks for EFI first, then jumps here.
const BIOS: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// Where an initramfs is.
#[derive(Debug, Clone, Copy)]
struct Initrd {
    address: u64,
    bytes: u64,
}

/// Puts everything a kernel needs into memory and returns where it is to be entered.
///
/// # Errors
/// When the files cannot be read or memory cannot hold them.
pub fn load(config: &Config, memory: &GuestMemory, devices: &[Slot]) -> Result<Kernel, Error> {
    let boot = config.boot.as_ref().ok_or(Error::NoKernel)?;
    let line = cmdline::line(config, devices)?;
    let kernel = kernel::load(&boot.kernel_image_path, memory)?;
    let initrd = boot.initrd_path.as_deref().map(|path| load_initrd(path, memory, &kernel)).transpose()?;
    cmdline::write(memory, &line)?;
    write(memory, layout::BIOS_ENTRY, &BIOS, "a BIOS")?;
    acpi::write(memory, config.machine.vcpu_count, devices)?;
    params::write(memory, &kernel, initrd, line.len())?;
    Ok(kernel)
}

/// As high as possible below the hole, where no kernel unpacks itself.
fn load_initrd(path: &Path, memory: &GuestMemory, kernel: &Kernel) -> Result<Initrd, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let room = || Error::Room {
        what: format!("the initrd {} with its kernel", path.display()),
        bytes: bytes + kernel.end,
    };
    let low = memory.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len);
    let address = low
        .checked_sub(bytes)
        .map(|address| address & !0xfff)
        .filter(|address| *address >= kernel.end)
        .ok_or_else(room)?;
    kernel::read_into(memory, address, &mut file, bytes).map_err(failed)?;
    Ok(Initrd { address, bytes })
}

/// Writes bytes that are known to lie in memory if there is any to speak of.
fn write(memory: &GuestMemory, address: u64, bytes: &[u8], what: &'static str) -> Result<(), Error> {
    use vm_memory::Bytes;
    memory.write_slice(bytes, GuestAddress(address)).map_err(|_| Error::Write(what))
}

const _: () = assert!(layout::RSDP < layout::KERNEL);
