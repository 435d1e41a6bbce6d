//! What this host's KVM offers.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::{Called, Error};

/// What a machine cannot be built, saved or restored without.
const NEEDED: [(Cap, &str); 14] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::PitState2, "KVM_CAP_PIT_STATE2"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// An open /dev/kvm that has what is needed.
pub struct Host {
    pub(super) kvm: Kvm,
    /// What a guest's processors can be.
    pub(super) cpuid: CpuId,
    /// The MSRs that KVM says are a vCPU's state.
    pub(super) msrs: Vec<u32>,
    /// Bytes of a vCPU's extended state where that is not the classic 4096 (KVM_CAP_XSAVE2).
    pub(super) xsave: Option<usize>,
    /// Whether local APICs have a deadline timer.
    pub(super) tsc_deadline: bool,
}

impl Host {
    /// Opens /dev/kvm and looks.
    ///
    /// # Errors
    /// When there is none, or it lacks something.
    pub fn open() -> Result<Self, Error> {
        let kvm = Kvm::new().map_err(Error::Open)?;
        if kvm.get_api_version() != 12 {
            return Err(Error::Version(kvm.get_api_version()));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Error::Lacks(name));
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).called("KVM_GET_SUPPORTED_CPUID")?;
        let msrs = kvm.get_msr_index_list().called("KVM_GET_MSR_INDEX_LIST")?.as_slice().to_vec();
        let xsave = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).ok().filter(|bytes| *bytes > 0);
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { kvm, cpuid, msrs, xsave, tsc_deadline })
    }
}
