//! A vCPU's model-specific registers.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{Called, Error};

/// The time-stamp counter. It is set before all others: timers are armed relative to it.
const TSC: u32 = 0x10;
/// The time the local APIC's timer fires, in the TSC's ticks. It is set last.
const TSC_DEADLINE: u32 = 0x6e0;
/// Feature control of the processor.
const MISC_ENABLE: u32 = 0x1a0;
/// The memory type where no range says otherwise.
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;

/// The memory type ranges: a vCPU's state that KVM_GET_MSR_INDEX_LIST does not list.
fn mtrrs() -> impl Iterator<Item = u32> {
    (0x200..=0x20f).chain([0x250, 0x258, 0x259]).chain(0x268..=0x26f).chain([MTRR_DEFAULT_TYPE])
}

/// What a processor's firmware leaves to a kernel: fast string operations, and write-back as the default memory type.
///
/// # Errors
/// When KVM does not take them.
pub fn boot(vcpu: &VcpuFd) -> Result<(), Error> {
    set(vcpu, &[(MISC_ENABLE, 1), (MTRR_DEFAULT_TYPE, 1 << 11 | 6)])
}

/// All that can be read of `listed` and the memory type ranges, in the order to set them.
///
/// # Errors
/// When KVM fails altogether.
pub fn save(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<(u32, u64)>, Error> {
    let mut indices: Vec<u32> = listed.iter().copied().chain(mtrrs()).collect();
    indices.sort_unstable_by_key(|index| (*index == TSC_DEADLINE, *index != TSC, *index));
    indices.dedup();
    let mut saved = get(vcpu, &indices)?;
    keep_fired_timer(&mut saved);
    Ok(saved)
}

/// Sets what was saved. A register that refuses its value is no error if it has that value.
///
/// # Errors
/// Names the first register that cannot be as it was.
pub fn restore(vcpu: &VcpuFd, saved: &[(u32, u64)]) -> Result<(), Error> {
    set(vcpu, saved)
}

/// A deadline that fired after the vCPU was stopped reads as 0, and its interrupt is in no saved register. Set to the
/// present, it fires again at once. (A guest takes a timer interrupt too many for nothing; Firecracker does the same.)
fn keep_fired_timer(saved: &mut [(u32, u64)]) {
    let now = saved.iter().find(|(index, _)| *index == TSC).map_or(0, |(_, value)| *value);
    for (_, deadline) in saved.iter_mut().filter(|(index, value)| *index == TSC_DEADLINE && *value == 0) {
        *deadline = now;
    }
}

/// KVM stops at the first register that it cannot read: it is left out, and the rest asked for again.
fn get(vcpu: &VcpuFd, mut indices: &[u32]) -> Result<Vec<(u32, u64)>, Error> {
    let mut values = Vec::with_capacity(indices.len());
    while !indices.is_empty() {
        let asked = &indices[..indices.len().min(KVM_MAX_MSR_ENTRIES)];
        let mut msrs = entries(asked.iter().map(|index| (*index, 0)))?;
        let read = vcpu.get_msrs(&mut msrs).called("KVM_GET_MSRS")?;
        values.extend(msrs.as_slice()[..read].iter().map(|msr| (msr.index, msr.data)));
        indices = &indices[(read + usize::from(read < asked.len()))..];
    }
    Ok(values)
}

fn set(vcpu: &VcpuFd, mut values: &[(u32, u64)]) -> Result<(), Error> {
    while !values.is_empty() {
        let asked = &values[..values.len().min(KVM_MAX_MSR_ENTRIES)];
        let written = vcpu.set_msrs(&entries(asked.iter().copied())?).called("KVM_SET_MSRS")?;
        values = &values[written..];
        if written < asked.len() {
            let (index, value) = values[0];
            if get(vcpu, &[index])? != [(index, value)] {
                return Err(Error::Msr { index, value });
            }
            values = &values[1..];
        }
    }
    Ok(())
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, Error> {
    let entries: Vec<_> =
        values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    Msrs::from_entries(&entries).map_err(|_| Error::Size("list of MSRs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_fired_while_stopped_fires_again() {
        let mut saved = [(TSC, 1000), (0x174, 0), (TSC_DEADLINE, 0)];
        keep_fired_timer(&mut saved);
        assert_eq!(saved, [(TSC, 1000), (0x174, 0), (TSC_DEADLINE, 1000)]);
        let mut armed = [(TSC, 1000), (TSC_DEADLINE, 2000)];
        keep_fired_timer(&mut armed);
        assert_eq!(armed, [(TSC, 1000), (TSC_DEADLINE, 2000)]);
    }
}
