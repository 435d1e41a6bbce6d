//! What can go wrong with a slot.

use std::io;
use std::path::PathBuf;

use wire::{Fault, Kind};

use crate::Slot;

/// A failure of wrenn-net.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The slot that was asked for is somebody's.
    #[error("slot {slot} is taken by {by}")]
    SlotTaken {
        /// The slot.
        slot: Slot,
        /// Its owner, as far as it is known.
        by: String,
    },
    /// All slots are somebody's.
    #[error("none of the {} slots is free", Slot::MAX)]
    NoSlot,
    /// The program may not do what it is for.
    #[error("missing {0}: run as root, or with these capabilities")]
    Privilege(&'static str),
    /// Taps cannot be made.
    #[error(
        "cannot open {}: load the tun module (modprobe tun), or give the container the device",
        sys::tap::DEVICE
    )]
    NoTun(#[source] io::Error),
    /// The kernel refused a step.
    #[error("cannot {what}{}", .hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Refused {
        /// The step.
        what: String,
        /// What the kernel said beyond its number.
        hint: Option<String>,
        /// Its number.
        source: io::Error,
    },
    /// The kernel has no nftables NAT.
    #[error("cannot {what}: this kernel lacks nftables NAT (modules nf_tables, nft_chain_nat, nft_masq)")]
    NoNftables {
        /// The step.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file could not be worked on.
    #[error("cannot {what} {}", .path.display())]
    File {
        /// What was to be done with it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the kernel refused this step.
    pub(crate) fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Refused { what, hint: None, source }
    }

    /// For `map_err`: this could not be done with this file.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// The kernel's number, if it was the kernel that refused.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::NoTun(source)
            | Self::Refused { source, .. }
            | Self::NoNftables { source, .. }
            | Self::File { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::SlotTaken { .. } => Kind::Conflict,
            Self::NoSlot => Kind::Exhausted,
            Self::Privilege(_) | Self::NoTun(_) | Self::NoNftables { .. } => Kind::Unsupported,
            Self::Refused { source, .. } | Self::File { source, .. } => Kind::of_io(source),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::SlotTaken { .. } => "net.slot_taken",
            Self::NoSlot => "net.no_slot",
            Self::Privilege(_) => "net.privilege",
            Self::NoTun(_) => "net.no_tun",
            Self::NoNftables { .. } => "net.no_nftables",
            Self::Refused { .. } => "net.refused",
            Self::File { .. } => "net.file",
        }
    }

    fn retry(&self) -> bool {
        matches!(self, Self::NoSlot)
    }
}
