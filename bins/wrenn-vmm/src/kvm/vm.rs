//! A virtual machine's memory slots, interrupt controllers, timer and clock.

use std::io;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Called, Error, Host};
use crate::layout;
use crate::memory::GuestMemory;

/// A virtual machine without its vCPUs.
pub struct Vm {
    pub(super) fd: VmFd,
    // KVM reads and writes it by address: it must not go before `fd`, nor before the vCPUs, which have their own share.
    pub(super) memory: GuestMemory,
}

/// What a machine has beside memory, vCPUs and devices.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
    irqchips: Vec<kvm_irqchip>,
}

impl Vm {
    /// A machine with this memory, interrupt controllers and an interval timer. Writes are not logged.
    ///
    /// # Errors
    /// What KVM said.
    pub fn new(host: &Host, memory: GuestMemory) -> Result<Self, Error> {
        let vm = Self { fd: create(host)?, memory };
        vm.fd.set_tss_address(layout::KVM_TSS as usize).called("KVM_SET_TSS_ADDR")?;
        vm.log_dirty(false)?;
        vm.fd.create_irq_chip().called("KVM_CREATE_IRQCHIP")?;
        // The speaker's port is answered in the kernel too: it lies among the keyboard's.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.fd.create_pit2(pit).called("KVM_CREATE_PIT2")?;
        Ok(vm)
    }

    /// An eventfd that raises an edge on an interrupt line.
    ///
    /// # Errors
    /// What eventfd or KVM_IRQFD said.
    pub fn irq(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.fd.register_irqfd(&event, gsi)?;
        Ok(event)
    }

    /// Signals an eventfd when the guest writes this 32-bit value to this address, instead of stopping the vCPU.
    ///
    /// # Errors
    /// What KVM_IOEVENTFD said.
    pub fn notify(&self, event: &EventFd, address: u64, value: u32) -> io::Result<()> {
        Ok(self.fd.register_ioevent(event, &IoEventAddress::Mmio(address), value)?)
    }

    /// Whether KVM keeps a log of the pages that vCPUs write.
    ///
    /// # Errors
    /// What KVM said.
    pub fn log_dirty(&self, on: bool) -> Result<(), Error> {
        for (slot, region) in self.memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags: if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            };
            // SAFETY: the mapping is `self.memory`'s, which lives as long as the machine and its vCPUs do, and is
            // shared with them by volatile access only.
            unsafe { self.fd.set_user_memory_region(region) }.called("KVM_SET_USER_MEMORY_REGION")?;
        }
        Ok(())
    }

    /// The log of each region, a bit a page; the log is empty after. All vCPUs must stand still, or writes between two
    /// calls are in the second.
    ///
    /// # Errors
    /// What KVM said; ENOENT where nothing is logged.
    pub fn take_dirty(&self) -> Result<Vec<Vec<u64>>, Error> {
        let log = |(slot, bytes): (usize, u64)| self.fd.get_dirty_log(slot as u32, bytes as usize);
        let sizes = self.memory.iter().map(GuestMemoryRegion::len);
        sizes.enumerate().map(log).collect::<Result<_, _>>().called("KVM_GET_DIRTY_LOG")
    }

    /// Timer, clock and interrupt controllers. No vCPU may run.
    ///
    /// # Errors
    /// What KVM said.
    pub fn save(&self) -> Result<VmState, Error> {
        let pit = self.fd.get_pit2().called("KVM_GET_PIT2")?;
        let clock = self.fd.get_clock().called("KVM_GET_CLOCK")?;
        let irqchip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map(|()| chip).called("KVM_GET_IRQCHIP")
        };
        let irqchips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(irqchip)
            .into_iter()
            .collect::<Result<_, _>>()?;
        Ok(VmState { pit, clock, irqchips })
    }

    /// As saved. The vCPUs are restored before: the I/O APIC looks at their APICs. The clock goes on from where it was.
    ///
    /// # Errors
    /// What KVM said.
    pub fn restore(&self, state: &VmState) -> Result<(), Error> {
        self.fd.set_pit2(&state.pit).called("KVM_SET_PIT2")?;
        let clock = kvm_clock_data { clock: state.clock.clock, ..Default::default() };
        self.fd.set_clock(&clock).called("KVM_SET_CLOCK")?;
        for chip in &state.irqchips {
            self.fd.set_irqchip(chip).called("KVM_SET_IRQCHIP")?;
        }
        Ok(())
    }
}

/// KVM_CREATE_VM fails with EINTR on a busy host without there being a signal, as QEMU and Firecracker found: the kernel
/// leaves only trying again.
fn create(host: &Host) -> Result<VmFd, Error> {
    let mut tries = 5;
    loop {
        tries -= 1;
        match host.kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR && tries > 0 => {}
            result => return result.called("KVM_CREATE_VM"),
        }
    }
}
