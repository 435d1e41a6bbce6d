//! What the API refuses, in Firecracker's words where it has some.

use crate::{api, config, machine, memory, snapshot, virtio};

/// Why a request was refused or failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Fault {
    #[error(transparent)]
    Request(#[from] api::Fault),
    #[error("The requested operation is not supported before starting the microVM.")]
    NotBefore,
    #[error("The requested operation is not supported after starting the microVM.")]
    NotAfter,
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("{0}")]
    Device(#[from] virtio::Error),
    #[error("No balloon device found.")]
    NoBalloon,
    #[error("Balloon update error: {0}")]
    Balloon(virtio::Error),
    #[error("{0}")]
    Statistics(virtio::Error),
    #[error("The kernel file cannot be opened: {path}: {source}", path = path.display())]
    Kernel { path: std::path::PathBuf, source: std::io::Error },
    #[error("The initrd file cannot be opened: {path}: {source}", path = path.display())]
    Initrd { path: std::path::PathBuf, source: std::io::Error },
    #[error("The {what} file cannot be opened: {path}: {source}", path = path.display())]
    Output { what: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("Cannot start microvm without kernel configuration.")]
    NoKernel,
    #[error("Start microvm error: {0}")]
    StartMemory(memory::Error),
    #[error("Start microvm error: {0}")]
    Start(machine::Error),
    #[error("Cannot {what} the microVM: {source}")]
    Run { what: &'static str, source: machine::Error },
    #[error("SendCtrlAltDel is not supported by wrenn-vmm: it has no keyboard.")]
    NoKeyboard,
    #[error("Create snapshot error: {0}")]
    Create(snapshot::CreateError),
    #[error("Load snapshot error: {0}")]
    Load(snapshot::LoadError),
}
