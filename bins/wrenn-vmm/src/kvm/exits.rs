//! Running a vCPU until somebody wants something of its thread.

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::machine::{Ending, Exit};

/// Where a vCPU's I/O goes.
#[derive(Default)]
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Guest-physical addresses that are not memory.
    pub memory: Bus,
}

/// Why a vCPU stopped.
pub enum Stop {
    /// A signal. All I/O it had begun is complete: KVM ends it before it looks for signals.
    Kicked,
    /// The guest's run is over.
    Ended,
}

/// Runs until a signal is pending or the guest has ended.
pub fn run(vcpu: &mut VcpuFd, buses: &Buses, ending: &Ending) -> Stop {
    while !ending.has_ended() {
        match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => buses.ports.read(u64::from(port), data),
            Ok(VcpuExit::IoOut(port, data)) => buses.ports.write(u64::from(port), data),
            Ok(VcpuExit::MmioRead(address, data)) => buses.memory.read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => buses.memory.write(address, data),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET | KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                ending.end(Exit::Reset)
            }
            Ok(VcpuExit::Shutdown) => ending.end(Exit::Crash("triple fault".into())),
            Ok(VcpuExit::InternalError) => ending.end(Exit::Crash(internal_error(vcpu))),
            Ok(other) => ending.end(Exit::Crash(format!("KVM returned {other:?}"))),
            Err(error) if error.errno() == libc::EINTR => return Stop::Kicked,
            // A waiting processor was started.
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) => ending.end(Exit::Crash(format!("KVM_RUN: {error}"))),
        }
    }
    Stop::Ended
}

fn internal_error(vcpu: &mut VcpuFd) -> String {
    // SAFETY: the exit reason was KVM_EXIT_INTERNAL_ERROR, for which the kernel fills in this member.
    let code = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
    let meaning = match code {
        1 => " (an instruction that KVM cannot emulate)",
        2 => " (an exception during the delivery of another)",
        3 => " (an exit during the delivery of an interrupt)",
        _ => "",
    };
    format!("KVM internal error {code}{meaning}")
}
