//! Where things are in the guest's physical address space.

use std::ops::Range;

/// RAM ends here, and goes on at 4 GiB: devices and the APICs lie between. (Firecracker's hole.)
pub const HOLE: Range<u64> = 3 << 30..4 << 30;

/// The first virtio device's registers. Device `n` is at `MMIO_BASE + n * MMIO_BYTES`.
pub const MMIO_BASE: u64 = HOLE.start;
/// Bytes of a virtio device's registers.
pub const MMIO_BYTES: u64 = 4096;

/// The interrupt line (GSI) of the first virtio device; device `n` has `MMIO_IRQ + n`. Below are the ISA devices'.
pub const MMIO_IRQ: u32 = 5;
/// The first GSI that the I/O APIC has not.
pub const IRQ_END: u32 = 24;

/// COM1.
pub const SERIAL_PORT: Range<u64> = 0x3f8..0x400;
/// COM1's interrupt line.
pub const SERIAL_IRQ: u32 = 4;
/// The keyboard controller, kept for its reset line.
pub const I8042_PORT: Range<u64> = 0x60..0x65;

/// The register that turns the machine off: the FADT names it.
pub const POWER_PORT: Range<u64> = 0x600..0x601;

/// The I/O APIC's registers.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs' registers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM needs on Intel hosts without unrestricted guests.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// Where a kernel is loaded: 1 MiB.
pub const KERNEL: u64 = 1 << 20;
/// The boot descriptor table.
pub const GDT: u64 = 0x500;
/// The page of boot parameters ("zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// The boot stack pointer.
pub const BOOT_STACK: u64 = 0x8ff0;
/// The first of the boot page tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x20000;
/// The command line with its closing zero, bytes at most (Firecracker's bound).
pub const CMDLINE_MAX: usize = 2048;
/// The extended BIOS area: RAM ends here for the guest below 1 MiB.
pub const EBDA: u64 = 0x9fc00;
/// The ACPI root pointer, where a kernel looks for it; the tables follow.
pub const RSDP: u64 = 0xe0000;

/// Where a processor after a reset looks for its BIOS (F000:FFF0).
pub const BIOS_ENTRY: u64 = 0xf_fff0;

/// Base addresses and sizes, in bytes, of the regions that `size` bytes of RAM make. In a memory file they follow one
/// another without a gap.
pub fn regions(size: u64) -> Vec<(u64, u64)> {
    match size.checked_sub(HOLE.start) {
        None | Some(0) => vec![(0, size)],
        Some(rest) => vec![(0, HOLE.start), (HOLE.end, rest)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_past_3_gib_goes_on_at_4_gib() {
        assert_eq!(regions(512 << 20), [(0, 512 << 20)]);
        assert_eq!(regions(3 << 30), [(0, 3 << 30)]);
        assert_eq!(regions(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
