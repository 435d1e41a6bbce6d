//! The page of boot parameters: what memory there is, and where everything lies.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{Error, Initrd, Kernel};
use crate::layout;
use crate::memory::GuestMemory;

/// E820: memory to use.
const RAM: u32 = 1;
/// E820: memory to leave alone.
const RESERVED: u32 = 2;

/// Writes the page.
///
/// # Errors
/// When there is too little memory.
pub fn write(
    memory: &GuestMemory,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    cmdline: usize,
) -> Result<(), Error> {
    let mut params = boot_params { acpi_rsdp_addr: layout::RSDP, ..Default::default() };
    if let Some(header) = kernel.header {
        params.hdr = header;
    }
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = 0x5372_6448; // "HdrS"
    params.hdr.type_of_loader = 0xff; // none that is registered
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = cmdline as u32;
    if kernel.header.is_none() {
        params.hdr.kernel_alignment = 1 << 24; // must not be 0
    }
    if let Some(initrd) = initrd {
        // It lies below the hole, so its address fits; its size does too.
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.bytes as u32;
    }
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    params.e820_table[..map.len()].copy_from_slice(&map);
    memory
        .write_obj(params, GuestAddress(layout::BOOT_PARAMS))
        .map_err(|_| Error::Write("the boot parameters"))
}

/// RAM, but for the last of the first MiB, where the ACPI tables are.
fn memory_map(memory: &GuestMemory) -> Vec<boot_e820_entry> {
    let entry =
        |start: u64, end: u64, type_| boot_e820_entry { addr: start, size: end - start, r#type: type_ };
    let mut map = vec![entry(0, layout::EBDA, RAM), entry(layout::EBDA, layout::KERNEL, RESERVED)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value().max(layout::KERNEL);
        let end = region.last_addr().raw_value() + 1;
        if start < end {
            map.push(entry(start, end, RAM));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mib_and_the_hole_are_not_offered_as_memory() {
        let memory =
            GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20), (GuestAddress(4 << 30), 1 << 20)])
                .unwrap();
        let map: Vec<_> =
            memory_map(&memory).iter().map(|entry| (entry.addr, entry.size, entry.r#type)).collect();
        let low = (0x10_0000, 3 << 20, RAM);
        assert_eq!(map, [(0, 0x9_fc00, RAM), (0x9_fc00, 0x6_0400, RESERVED), low, (4 << 30, 1 << 20, RAM)]);
    }
}
