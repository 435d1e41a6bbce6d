//! Why a snapshot cannot be written or loaded.

use std::io;

use super::state_file;
use crate::{config, machine, memory, virtio};

/// Why a snapshot was not written. The machine is as it was.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum CreateError {
    #[error("Cannot save the microVM state: Operation not allowed: save/restore unavailable while running")]
    Running,
    #[error("Cannot save the microVM state: {0}")]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error(transparent)]
    State(#[from] state_file::Error),
}

/// Why a snapshot was not loaded.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum LoadError {
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    Configured,
    #[error("clock_realtime is not supported by wrenn-vmm: the guest's clock is the agent's to set")]
    ClockRealtime,
    #[error("Unknown Network Device: {0}.")]
    NoInterface(String),
    #[error(transparent)]
    State(#[from] state_file::Error),
    #[error("The snapshot's configuration does not fit: {0}")]
    Config(#[from] config::Error),
    #[error("Cannot open the serial output: {0}")]
    Console(io::Error),
    #[error(transparent)]
    Device(#[from] virtio::Error),
    #[error(transparent)]
    Memory(#[from] memory::Error),
    #[error("The page server hung up without having taken the memory")]
    PageServerGone,
    #[error("Cannot restore the microVM: {0}")]
    Machine(#[from] machine::Error),
}
