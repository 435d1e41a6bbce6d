//! A machine's state beside memory, virtio devices and disks.

use serde::{Deserialize, Serialize};

use super::Error;
use crate::config::Config;
use crate::kvm::{VcpuState, VmState};
use crate::legacy::SerialState;

/// vCPUs in the order of their numbers, interrupt controllers, timer and clock, and COM1. (The keyboard controller and
/// the power registers have none.)
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    pub(super) vcpus: Vec<VcpuState>,
    pub(super) vm: VmState,
    pub(super) serial: SerialState,
}

impl MachineState {
    /// Whether it is one of a machine like this.
    pub(super) fn check(&self, config: &Config) -> Result<(), Error> {
        let (saved, wanted) = (self.vcpus.len(), usize::from(config.machine.vcpu_count));
        if saved == wanted {
            Ok(())
        } else {
            Err(Error::State(format!("it has {saved} vCPUs, not {wanted}")))
        }
    }
}
