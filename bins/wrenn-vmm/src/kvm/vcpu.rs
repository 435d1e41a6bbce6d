//! A vCPU and all of its state.

use kvm_bindings::{
    CpuId, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{Called, Error, Host, Vm, cpuid, msrs};
use crate::memory::GuestMemory;

/// A vCPU that does not run yet, or stands still.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    /// Its number and APIC id.
    pub(super) index: u8,
    cpuid: CpuId,
    msrs: Vec<u32>,
    xsave: Option<usize>,
    // The guest's memory stays mapped for as long as a vCPU can write to it.
    _memory: GuestMemory,
}

/// A vCPU's registers, pending events and local APIC.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    cpuid: CpuId,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    /// Its TSC's frequency, kHz, where KVM knows it.
    tsc_khz: Option<u32>,
}

impl Vcpu {
    /// vCPU `index` of `count` after power-on; the first runs, the others wait to be started by it.
    ///
    /// # Errors
    /// What KVM said.
    pub fn new(host: &Host, vm: &Vm, index: u8, count: u8) -> Result<Self, Error> {
        let vcpu = Self::bare(host, vm, index, cpuid::of(host, index, count)?)?;
        msrs::boot(&vcpu.fd)?;
        vcpu.wire_interrupts()?;
        Ok(vcpu)
    }

    /// A vCPU as it was saved.
    ///
    /// # Errors
    /// What KVM said; a register that cannot be as it was.
    pub fn restore(host: &Host, vm: &Vm, index: u8, state: &VcpuState) -> Result<Self, Error> {
        let vcpu = Self::bare(host, vm, index, state.cpuid.clone())?;
        vcpu.scale_tsc(state.tsc_khz)?;
        vcpu.set(host, state)?;
        Ok(vcpu)
    }

    fn bare(host: &Host, vm: &Vm, index: u8, cpuid: CpuId) -> Result<Self, Error> {
        let fd = vm.fd.create_vcpu(u64::from(index)).called("KVM_CREATE_VCPU")?;
        fd.set_cpuid2(&cpuid).called("KVM_SET_CPUID2")?;
        Ok(Self { fd, index, cpuid, msrs: host.msrs.clone(), xsave: host.xsave, _memory: vm.memory.clone() })
    }

    /// The registers that a kernel is entered with.
    ///
    /// # Errors
    /// What KVM said.
    pub fn enter(&self, adjust: impl FnOnce(&mut kvm_regs, &mut kvm_sregs)) -> Result<(), Error> {
        let mut regs = kvm_regs { rflags: 2, ..Default::default() };
        let mut sregs = self.fd.get_sregs().called("KVM_GET_SREGS")?;
        adjust(&mut regs, &mut sregs);
        self.fd.set_sregs(&sregs).called("KVM_SET_SREGS")?;
        self.fd.set_regs(&regs).called("KVM_SET_REGS")
    }

    /// Reads everything. The order matters: KVM_GET_MP_STATE may change the local APIC and registers, and reading any
    /// of the rest may change the pending events.
    ///
    /// # Errors
    /// What KVM said.
    pub fn save(&self) -> Result<VcpuState, Error> {
        Ok(VcpuState {
            cpuid: self.cpuid.clone(),
            mp_state: self.fd.get_mp_state().called("KVM_GET_MP_STATE")?,
            regs: self.fd.get_regs().called("KVM_GET_REGS")?,
            sregs: self.fd.get_sregs().called("KVM_GET_SREGS")?,
            xsave: self.get_xsave()?,
            xcrs: self.fd.get_xcrs().called("KVM_GET_XCRS")?,
            debug_regs: self.fd.get_debug_regs().called("KVM_GET_DEBUGREGS")?,
            lapic: self.fd.get_lapic().called("KVM_GET_LAPIC")?,
            tsc_khz: self.fd.get_tsc_khz().ok(),
            msrs: msrs::save(&self.fd, &self.msrs)?,
            events: self.fd.get_vcpu_events().called("KVM_GET_VCPU_EVENTS")?,
        })
    }

    /// Sets everything. The order matters: the APIC's base is in the special registers, deadline timers want the APIC,
    /// and setting the registers drops pending events.
    fn set(&self, host: &Host, state: &VcpuState) -> Result<(), Error> {
        self.fd.set_mp_state(state.mp_state).called("KVM_SET_MP_STATE")?;
        self.fd.set_regs(&state.regs).called("KVM_SET_REGS")?;
        self.fd.set_sregs(&state.sregs).called("KVM_SET_SREGS")?;
        self.set_xsave(host, &state.xsave)?;
        self.fd.set_xcrs(&state.xcrs).called("KVM_SET_XCRS")?;
        self.fd.set_debug_regs(&state.debug_regs).called("KVM_SET_DEBUGREGS")?;
        self.fd.set_lapic(&state.lapic).called("KVM_SET_LAPIC")?;
        msrs::restore(&self.fd, &state.msrs)?;
        self.fd.set_vcpu_events(&state.events).called("KVM_SET_VCPU_EVENTS")
    }

    fn get_xsave(&self) -> Result<Xsave, Error> {
        let Some(bytes) = self.xsave else {
            let xsave = self.fd.get_xsave().called("KVM_GET_XSAVE")?;
            // SAFETY: `len` counts the words that follow the structure, and none do.
            return Ok(unsafe { Xsave::from_raw(vec![kvm_xsave2 { len: 0, xsave }]) });
        };
        let mut xsave = Xsave::new(words_past_classic(bytes)).map_err(|_| Error::Size("extended state"))?;
        // SAFETY: it has room for the size that KVM_CAP_XSAVE2 gave.
        unsafe { self.fd.get_xsave2(&mut xsave) }.called("KVM_GET_XSAVE2")?;
        Ok(xsave)
    }

    fn set_xsave(&self, host: &Host, xsave: &Xsave) -> Result<(), Error> {
        // KVM reads as much as it says, whatever we hand it.
        if xsave.as_slice().len() < host.xsave.map_or(0, words_past_classic) {
            return Err(Error::Size("extended state"));
        }
        // SAFETY: it is at least as long as what KVM reads, as was just checked.
        unsafe { self.fd.set_xsave2(xsave) }.called("KVM_SET_XSAVE")
    }

    /// Where KVM can say how fast the TSC runs, here and there.
    fn scale_tsc(&self, saved: Option<u32>) -> Result<(), Error> {
        let (Some(saved), Ok(here)) = (saved, self.fd.get_tsc_khz()) else {
            return Ok(());
        };
        if !is_same_frequency(saved, here) {
            self.fd.set_tsc_khz(saved).map_err(|_| Error::Tsc { saved, here })?;
        }
        Ok(())
    }

    /// The local APIC's two pins: external interrupts and NMI, as firmware wires them.
    fn wire_interrupts(&self) -> Result<(), Error> {
        const LINT0: usize = 0x350;
        const LINT1: usize = 0x360;
        const NMI: u8 = 4;
        const EXTERNAL: u8 = 7;
        let mut lapic = self.fd.get_lapic().called("KVM_GET_LAPIC")?;
        // Bits 8 to 10 are the delivery mode.
        lapic.regs[LINT0 + 1] = (lapic.regs[LINT0 + 1] as u8 & !7 | EXTERNAL) as _;
        lapic.regs[LINT1 + 1] = (lapic.regs[LINT1 + 1] as u8 & !7 | NMI) as _;
        self.fd.set_lapic(&lapic).called("KVM_SET_LAPIC")
    }
}

/// Processors calibrate a little differently at every boot of the host: up to 250 ppm count as the same, as in QEMU.
fn is_same_frequency(saved: u32, here: u32) -> bool {
    u64::from(saved.abs_diff(here)) * 1_000_000 <= u64::from(saved) * 250
}

/// How many 32-bit words an extended state of that size has past the classic structure.
fn words_past_classic(bytes: usize) -> usize {
    bytes.saturating_sub(size_of::<kvm_xsave>()).div_ceil(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tsc_is_scaled_only_when_it_is_not_a_matter_of_calibration() {
        assert!(is_same_frequency(2_600_000, 2_600_650));
        assert!(!is_same_frequency(2_600_000, 2_600_651));
        assert!(!is_same_frequency(2_600_000, 2_000_000));
        assert!(!is_same_frequency(0, 1));
    }

    #[test]
    fn an_extended_state_is_counted_in_words() {
        assert_eq!(words_past_classic(4096), 0);
        assert_eq!(words_past_classic(11_008), 1728);
    }
}
