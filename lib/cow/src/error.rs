//! What can go wrong with a disk.

use std::io;
use std::path::{Path, PathBuf};

use wire::{Fault, Kind};

use crate::exceptions::StoreError;

/// A failure of wrenn-cow.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of each says what it is")]
pub enum Error {
    #[error("cannot {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the image {} cannot be used", path.display())]
    Image { path: PathBuf, source: io::Error },
    #[error("the image {} is not a file", path.display())]
    ImageKind { path: PathBuf },
    #[error("the image {} has {bytes} bytes: it must have some, and a multiple of 512", path.display())]
    ImageSize { path: PathBuf, bytes: u64 },
    #[error("the image {} has {found} bytes now; the disk was made over {expected}", path.display())]
    ImageChanged { path: PathBuf, found: u64, expected: u64 },
    #[error("{what} exists already")]
    Exists { what: String },
    #[error("{what} is in use: {why}")]
    Busy { what: String, why: String },
    #[error("the disk's file {} is gone", path.display())]
    FileGone { path: PathBuf },
    #[error("there is no device {name}")]
    NoDevice { name: String },
    #[error(
        "device-mapper cannot be used: load the module dm_mod, be root, or ask for kind \"clone\" (a private copy)"
    )]
    NoDeviceMapper(#[source] io::Error),
    #[error(
        "the kernel has no dm target \"snapshot\": load the module dm_snapshot, or ask for kind \"clone\""
    )]
    NoSnapshotTarget(#[source] io::Error),
    #[error("loop devices cannot be used: load the module loop (Linux 5.8 or later) and be root")]
    NoLoop(#[source] io::Error),
    #[error("cannot {what} the device {name}")]
    Device { what: &'static str, name: String, source: io::Error },
    #[error("the CoW file {} cannot be read", path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error("the kernel refuses the CoW file {}: {state}", path.display())]
    Refused { path: PathBuf, state: &'static str },
    #[error("the disk {name} is full and has refused writes: what the guest has written since is not on it")]
    Full { name: String },
    #[error("the disk {name} works no more: {state}")]
    Broken { name: String, state: &'static str },
    #[error("{} is not a paused disk's description: {why}", path.display())]
    Meta { path: PathBuf, why: String },
}

impl Error {
    /// For `map_err`: an operation on a path failed.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match source.kind() {
            io::ErrorKind::AlreadyExists => Self::Exists { what: path.display().to_string() },
            _ => Self::Io { what, path, source },
        }
    }

    /// For `map_err`: an operation on a mapped device failed.
    pub(crate) fn device(what: &'static str, name: &str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Device { what, name, source }
    }

    /// For `map_err`: a CoW file's content is wrong, or reading it failed.
    pub(crate) fn store(path: &Path) -> impl FnOnce(StoreError) -> Self {
        let path = path.to_owned();
        move |source| Self::Store { path, source }
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } | Self::Image { source, .. } | Self::Device { source, .. } => {
                Kind::of_io(source)
            }
            Self::ImageKind { .. } | Self::ImageSize { .. } => Kind::Invalid,
            Self::ImageChanged { .. } | Self::Exists { .. } | Self::Busy { .. } => Kind::Conflict,
            Self::FileGone { .. } | Self::NoDevice { .. } => Kind::NotFound,
            Self::NoDeviceMapper(_) | Self::NoSnapshotTarget(_) | Self::NoLoop(_) => Kind::Unsupported,
            Self::Store { source: StoreError::Read(source), .. } => Kind::of_io(source),
            Self::Full { .. } => Kind::Exhausted,
            Self::Store { .. } | Self::Refused { .. } | Self::Broken { .. } | Self::Meta { .. } => {
                Kind::Corrupt
            }
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "cow.io",
            Self::Image { .. } => "cow.image",
            Self::ImageKind { .. } => "cow.image_kind",
            Self::ImageSize { .. } => "cow.image_size",
            Self::ImageChanged { .. } => "cow.image_changed",
            Self::Exists { .. } => "cow.exists",
            Self::Busy { .. } => "cow.busy",
            Self::FileGone { .. } => "cow.file_gone",
            Self::NoDevice { .. } => "cow.no_device",
            Self::NoDeviceMapper(_) => "cow.no_device_mapper",
            Self::NoSnapshotTarget(_) => "cow.no_snapshot_target",
            Self::NoLoop(_) => "cow.no_loop",
            Self::Device { .. } => "cow.device",
            Self::Store { .. } | Self::Refused { .. } => "cow.corrupt",
            Self::Full { .. } => "cow.full",
            Self::Broken { .. } => "cow.broken",
            Self::Meta { .. } => "cow.meta",
        }
    }

    fn retry(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}
