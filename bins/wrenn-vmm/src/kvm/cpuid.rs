//! What the guest's processors say they are: the host's features, as `count` cores of one socket.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{Error, Host};

/// Leaf 1 ECX: the guest may use VMX. Nested guests are not offered: their state is not saved.
const VMX: u32 = 1 << 5;
/// Leaf 1 ECX: performance monitoring's capabilities MSR.
const PDCM: u32 = 1 << 15;
/// Leaf 1 ECX: the local APIC's timer takes a TSC value.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: there is more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 8000_0001 ECX: the guest may use SVM.
const SVM: u32 = 1 << 2;
/// Leaf 8000_0001 ECX: all threads of the socket are cores. (CmpLegacy)
const LEGACY_MULTI_PROCESSOR: u32 = 1 << 1;

/// The CPUID of vCPU `index` (its APIC id) of `count`.
///
/// # Errors
/// When the table would be longer than KVM takes.
pub fn of(host: &Host, index: u8, count: u8) -> Result<CpuId, Error> {
    let mut entries = host.cpuid.as_slice().to_vec();
    for entry in &mut entries {
        describe(entry, u32::from(index), u32::from(count));
        if entry.function == 1 && host.tsc_deadline {
            entry.ecx |= TSC_DEADLINE;
        }
    }
    // Older kernels list the topology's second level, newer ones do not.
    for leaf in [0xb, 0x1f] {
        let levels = entries.iter().filter(|entry| entry.function == leaf).count();
        if levels == 1 {
            let mut cores = kvm_cpuid_entry2 {
                function: leaf,
                index: 1,
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                ..Default::default()
            };
            describe(&mut cores, u32::from(index), u32::from(count));
            entries.push(cores);
        }
    }
    CpuId::from_entries(&entries).map_err(|_| Error::Size("CPUID"))
}

/// Adjusts what depends on the vCPU, and hides what is not offered. APIC ids count from 0, one thread a core.
fn describe(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    let bits = count.next_power_of_two().ilog2();
    match (entry.function, entry.index) {
        (1, _) => {
            entry.ebx = id << 24 | count << 16 | entry.ebx & 0xffff;
            entry.ecx = entry.ecx & !(VMX | PDCM) | HYPERVISOR;
            entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
        }
        // Intel's caches: how many ids share each (bits 25..14), and how many cores there are (31..26). Levels 1 and 2
        // are a core's own.
        (4, _) if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 < 3 { 0 } else { (1 << bits) - 1 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | ((1 << bits) - 1) << 26;
        }
        // No performance counters.
        (0xa, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // The topology's levels: threads of a core, cores of the socket, no more.
        (0xb | 0x1f, level) => {
            (entry.eax, entry.ebx, entry.ecx) = match level {
                0 => (0, 1, 1 << 8),
                1 => (bits, count, 2 << 8 | 1),
                _ => (0, 0, level),
            };
            entry.edx = id;
        }
        (0x8000_0001, _) => {
            entry.ecx = if count > 1 {
                entry.ecx | LEGACY_MULTI_PROCESSOR
            } else {
                entry.ecx & !LEGACY_MULTI_PROCESSOR
            };
            entry.ecx &= !SVM;
        }
        // AMD: the number of cores less one, and the bits of an id that name one.
        (0x8000_0008, _) => entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (count - 1),
        // No nested guests.
        (0x8000_000a, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD's caches: how many share each, less one.
        (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 < 3 { 0 } else { count - 1 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        // AMD: APIC id, core id (one thread each), node id (one node).
        (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(
        function: u32,
        index: u32,
        mut entry: kvm_cpuid_entry2,
        id: u32,
        count: u32,
    ) -> kvm_cpuid_entry2 {
        (entry.function, entry.index) = (function, index);
        describe(&mut entry, id, count);
        entry
    }

    #[test]
    fn a_vcpu_knows_its_id_and_how_many_there_are() {
        let leaf =
            described(1, 0, kvm_cpuid_entry2 { ebx: 0xffff_0842, ecx: VMX, ..Default::default() }, 2, 3);
        assert_eq!((leaf.ebx, leaf.ecx, leaf.edx), (0x0203_0842, HYPERVISOR, HTT));
        let cores = described(0xb, 1, kvm_cpuid_entry2::default(), 2, 3);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        let amd = described(0x8000_0008, 0, kvm_cpuid_entry2 { ecx: 0xffff, ..Default::default() }, 2, 3);
        assert_eq!(amd.ecx, 0x2f02);
    }

    #[test]
    fn one_vcpu_is_no_multi_processor() {
        let leaf = described(1, 0, kvm_cpuid_entry2 { edx: HTT, ..Default::default() }, 0, 1);
        assert_eq!((leaf.ebx, leaf.edx), (0x0001_0000, 0));
        let cache = described(4, 3, kvm_cpuid_entry2 { eax: 0xfc1f_c163, ..Default::default() }, 0, 1);
        assert_eq!(cache.eax, 0x163);
    }

    #[test]
    fn a_shared_cache_is_shared_by_all_and_a_cores_own_by_none() {
        let third = described(4, 3, kvm_cpuid_entry2 { eax: 0x163, ..Default::default() }, 0, 4);
        assert_eq!(third.eax, 3 << 26 | 3 << 14 | 0x163);
        let first = described(4, 0, kvm_cpuid_entry2 { eax: 0x121, ..Default::default() }, 0, 4);
        assert_eq!(first.eax, 3 << 26 | 0x121);
    }
}
