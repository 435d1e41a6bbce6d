//! ACPI: how the guest learns of its processors, its devices and how to turn itself off. The tables follow one another
//! from the root pointer on.

use acpi_tables::aml::{self, Name, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, fadt};

use super::{Error, write as write_to};
use crate::layout;
use crate::legacy::power;
use crate::memory::GuestMemory;
use crate::virtio::Slot;

const OEM: [u8; 6] = *b"WRENN ";
const TABLE: [u8; 8] = *b"WRENNVMM";
/// Bytes of every table's header.
const HEADER: u32 = 36;
/// FADT boot flags: no VGA, no CMOS clock. That there is no keyboard controller is said by not saying that there is one:
/// its reset line works all the same.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// Writes the tables.
///
/// # Errors
/// When there is too little memory.
pub fn write(memory: &GuestMemory, vcpus: u8, devices: &[Slot]) -> Result<(), Error> {
    let mut next = layout::RSDP + Rsdp::len().next_multiple_of(16) as u64;
    let mut place = |table: &dyn Aml| {
        let bytes = bytes(table);
        let address = next;
        next += bytes.len().next_multiple_of(16) as u64;
        write_to(memory, address, &bytes, "the ACPI tables").map(|()| address)
    };
    let dsdt = place(&dsdt(devices))?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(vcpus))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt)?;
    write_to(memory, layout::RSDP, &bytes(&Rsdp::new(OEM, xsdt)), "the ACPI tables")
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// No legacy hardware; a register to turn it off.
fn fadt(dsdt: u64) -> fadt::FADT {
    let register = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, layout::POWER_PORT.start);
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.sleep_control_reg = register;
    fadt.sleep_status_reg = register;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

/// APIC ids are the vCPUs' numbers.
fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, 1, LocalInterruptController::Address(layout::LOCAL_APIC));
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

/// COM1, the virtio devices, and the type of the soft-off state.
fn dsdt(devices: &[Slot]) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 6, OEM, TABLE, 1);
    let (port, ports) =
        (layout::SERIAL_PORT.start as u16, (layout::SERIAL_PORT.end - layout::SERIAL_PORT.start) as u8);
    dsdt.append_slice(&bytes(&aml::Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&edge(layout::SERIAL_IRQ), &aml::IO::new(port, port, 1, ports)]),
            ),
        ],
    )));
    for (number, device) in devices.iter().enumerate() {
        dsdt.append_slice(&virtio(number, device));
    }
    dsdt.append_slice(&bytes(&Name::new("_S5_".into(), &aml::Package::new(vec![&power::SOFT_OFF]))));
    dsdt
}

/// A virtio device behind MMIO: `LNRO0005` is the id that Linux's virtio_mmio looks for.
fn virtio(number: usize, device: &Slot) -> Vec<u8> {
    bytes(&aml::Device::new(
        Path::new(&format!("_SB_.V{number:03}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &aml::Memory32Fixed::new(true, device.base as u32, layout::MMIO_BYTES as u32),
                    &edge(device.irq),
                ]),
            ),
        ],
    ))
}

/// An interrupt of the device's own, edge-triggered and active high: an irqfd makes edges.
fn edge(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn table(memory: &GuestMemory, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut table = vec![0; length as usize];
        memory.read_slice(&mut table, GuestAddress(address)).unwrap();
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "the checksum");
        table
    }

    fn u64_at(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    }

    fn count(haystack: &[u8], needle: &[u8]) -> usize {
        haystack.windows(needle.len()).filter(|window| *window == needle).count()
    }

    #[test]
    fn every_table_is_reached_from_the_root_and_sums_to_zero() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let devices: Vec<_> =
            (0..12).map(|n| Slot { base: layout::MMIO_BASE + n * 4096, irq: 5 + n as u32 }).collect();
        write(&memory, 3, &devices).unwrap();

        let mut rsdp = [0; 36];
        memory.read_slice(&mut rsdp, GuestAddress(layout::RSDP)).unwrap();
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&memory, u64_at(&rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = table(&memory, u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        let madt = table(&memory, u64_at(&xsdt, 44));
        assert_eq!(&madt[..4], b"APIC");
        assert_eq!(madt.len(), 44 + 12 + 3 * 8, "an I/O APIC and three processors");
        let dsdt = table(&memory, u64_at(&fadt, 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert_eq!(count(&dsdt, b"LNRO0005"), 12);
        assert_eq!(count(&dsdt, &(layout::MMIO_BASE as u32 + 11 * 4096).to_le_bytes()), 1);
        assert_eq!(count(&dsdt, b"_S5_"), 1);
    }
}
