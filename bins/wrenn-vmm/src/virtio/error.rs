//! What can go wrong with the devices.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A device cannot be made, or not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A drive's file cannot be opened.
    #[error("drive {id}: {path} cannot be opened: {source}")]
    Drive {
        /// Its name.
        id: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A drive's file is no disk.
    #[error("drive {id}: {path} is neither a file nor a block device")]
    NoDisk {
        /// Its name.
        id: String,
        /// Its file.
        path: PathBuf,
    },
    /// A network interface's tap does not exist.
    #[error("network interface {id}: there is no tap {tap}")]
    NoTap {
        /// The interface's name.
        id: String,
        /// The tap's.
        tap: String,
    },
    /// A network interface's tap cannot be used.
    #[error("network interface {id}: tap {tap} cannot be used: {source}")]
    Tap {
        /// The interface's name.
        id: String,
        /// The tap's.
        tap: String,
        /// Why: EBUSY when another program is attached to it.
        source: io::Error,
    },
    /// Not a MAC address.
    #[error("network interface {id}: {mac:?} is no MAC address")]
    Mac {
        /// The interface's name.
        id: String,
        /// What it is instead.
        mac: String,
    },
    /// A device's descriptors cannot be made or registered.
    #[error("virtio device {slot} cannot be set up: {source}")]
    Setup {
        /// Its place in the layout.
        slot: usize,
        /// Why.
        source: io::Error,
    },
    /// More devices than interrupt lines.
    #[error("{0} virtio devices are more than there are interrupt lines for")]
    TooMany(usize),
    /// The io thread cannot be started.
    #[error("the io thread cannot be started: {0}")]
    Thread(String),
    /// The io thread does not come to rest.
    #[error("the io thread was busy for {} s: is the page server alive?", .0.as_secs())]
    Busy(Duration),
    /// A drive could not be brought up to date before a snapshot.
    #[error("virtio device {slot} cannot be written out: {source}")]
    Flush {
        /// Its place in the layout.
        slot: usize,
        /// Why.
        source: io::Error,
    },
    /// A saved state does not fit.
    #[error("the saved virtio devices do not fit: {0}")]
    State(String),
    /// The guest's balloon driver is not there yet.
    #[error("Device not activated yet.")]
    NotActive,
    /// The balloon cannot be larger than memory.
    #[error("Requested memory should be less than {0}MiB")]
    TooMuchMemory(u64),
    /// The balloon was made without statistics.
    #[error("Received stats query when stats are disabled.")]
    StatisticsDisabled,
    /// The balloon's statistics stay on or off.
    #[error("Statistics cannot be enabled/disabled after activation.")]
    StatisticsChange,
}
