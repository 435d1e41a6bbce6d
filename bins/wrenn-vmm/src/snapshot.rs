//! A machine on disk: a state file and a memory file.

mod error;
pub mod state_file;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::machine::MachineState;
use crate::virtio::VirtioState;

pub use error::{CreateError, LoadError};

/// What a state file holds.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// Which wrenn-vmm wrote it.
    pub vmm_version: String,
    /// What the machine is made of.
    pub config: Config,
    /// vCPUs, interrupt controllers, timers, serial port.
    pub machine: MachineState,
    /// virtio devices.
    pub virtio: VirtioState,
}

impl State {
    /// A state to be written.
    pub fn new(config: Config, machine: MachineState, virtio: VirtioState) -> Self {
        Self { vmm_version: env!("CARGO_PKG_VERSION").into(), config, machine, virtio }
    }
}
