//! The first vCPU as a kernel's 64-bit entry point wants it: long mode, the first GiB mapped one to one, flat segments.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::{Error, Kernel, write};
use crate::kvm::Vcpu;
use crate::layout;
use crate::machine;
use crate::memory::GuestMemory;

/// Flat 64-bit code and flat data, at the selectors 0x10 and 0x18 that the boot protocol fixes, and a task segment.
const GDT: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

/// CR0: protected mode, paging. CR4: long page tables. EFER: long mode wanted and active.
const CR0: u64 = 1 | 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER: u64 = 1 << 8 | 1 << 10;
/// A page table entry that is present and writable; one that maps 2 MiB.
const TABLE: u64 = 0b11;
const LARGE: u64 = TABLE | 1 << 7;

/// Writes the tables and sets the registers.
///
/// # Errors
/// When there is too little memory, or what KVM said.
pub fn enter(vcpu: &Vcpu, memory: &GuestMemory, kernel: &Kernel) -> Result<(), machine::Error> {
    write(memory, layout::GDT, GDT.map(u64::to_le_bytes).as_flattened(), "the descriptor table")?;
    write_page_tables(memory)?;
    Ok(vcpu.enter(|regs, sregs| set(regs, sregs, kernel.entry))?)
}

fn set(regs: &mut kvm_regs, sregs: &mut kvm_sregs, entry: u64) {
    regs.rip = entry;
    regs.rsp = layout::BOOT_STACK;
    regs.rsi = layout::BOOT_PARAMS;
    sregs.gdt.base = layout::GDT;
    sregs.gdt.limit = (size_of_val(&GDT) - 1) as u16;
    sregs.idt.limit = 0;
    let data = segment(3);
    sregs.cs = segment(2);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(4);
    sregs.cr0 |= CR0;
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER;
}

/// The hidden part of a segment register, from the descriptor that it would be loaded from.
fn segment(index: u16) -> kvm_segment {
    let descriptor = GDT[usize::from(index)];
    let bits = |from: u32, count: u32| (descriptor >> from & ((1 << count) - 1)) as u8;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: 0,
        limit: limit << 12 | 0xfff, // all of them count in pages
        selector: index * 8,
        type_: bits(40, 4),
        s: bits(44, 1),
        dpl: bits(45, 2),
        present: bits(47, 1),
        avl: bits(52, 1),
        l: bits(53, 1),
        db: bits(54, 1),
        g: bits(55, 1),
        ..Default::default()
    }
}

fn write_page_tables(memory: &GuestMemory) -> Result<(), Error> {
    let [level4, level3, level2] = [0, 1, 2].map(|page| layout::PAGE_TABLES + page * 4096);
    let large_pages: Vec<u8> = (0..512_u64).flat_map(|page| (page << 21 | LARGE).to_le_bytes()).collect();
    for (address, entries) in [
        (level4, &(level3 | TABLE).to_le_bytes()[..]),
        (level3, &(level2 | TABLE).to_le_bytes()[..]),
        (level2, &large_pages),
    ] {
        write(memory, address, entries, "the page tables")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_segment_is_64_bit_code_and_the_data_segment_is_flat() {
        let (code, data) = (segment(2), segment(3));
        assert_eq!(
            (code.selector, code.l, code.db, code.s, code.present, code.type_),
            (0x10, 1, 0, 1, 1, 0xb)
        );
        assert_eq!((data.selector, data.limit, data.g, data.type_), (0x18, u32::MAX, 1, 3));
    }
}
