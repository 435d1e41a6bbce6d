//! What can go wrong with memory images, and what each failure is called.

use std::io;
use std::path::{Path, PathBuf};

use wire::{Fault, Kind};

use crate::header::HeaderFault;

/// A failure of wrenn-snap's work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the request can never work.
    #[error("{field}: {what}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The kernel refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no header where a snapshot should be.
    #[error("{} is no snapshot: it has no memfile.header", dir.display())]
    NoSnapshot {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no VMM's state where a paused VM should be.
    #[error("{} has no VMM's state: neither snapfile nor wrenn-vmm.state nor state.json and config.json", dir.display())]
    NoState {
        /// The directory.
        dir: PathBuf,
    },
    /// A header that cannot be believed.
    #[error("{} is corrupt: {fault}", path.display())]
    Header {
        /// The header's path.
        path: PathBuf,
        /// What is wrong with it.
        fault: HeaderFault,
    },
    /// Checksums that are none.
    #[error("{} is no file of checksums for this build", path.display())]
    Sums {
        /// Their path.
        path: PathBuf,
    },
    /// A diff file that the header refers to is not there.
    #[error("{} is missing, and {} refers to it", path.display(), header.display())]
    DiffMissing {
        /// Where it should be.
        path: PathBuf,
        /// The header's path.
        header: PathBuf,
    },
    /// A diff file ends before the last byte that the header refers to.
    #[error("{} has {bytes} bytes, its header refers to {wanted}", path.display())]
    DiffShort {
        /// The diff file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The length the header needs.
        wanted: u64,
    },
    /// A memory file without a header cannot be all of a memory.
    #[error("{} has {bytes} bytes, not a positive multiple of {block_size}", path.display())]
    Plain {
        /// The memory file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// Bytes of a block.
        block_size: u64,
    },
    /// A VMM's description of its machine cannot be understood.
    #[error("{} {why}", path.display())]
    Config {
        /// The description's path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A name is taken: what is published is never overwritten.
    #[error("{} exists already, and what is published is never overwritten", path.display())]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// Somebody else changes the snapshot.
    #[error("{} is being changed by somebody else", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// A directory that is not a snapshot's.
    #[error("{} does not look like a snapshot: {what}", dir.display())]
    NotASnapshot {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        what: String,
    },
    /// A diff cannot be read from this file system.
    #[error("cannot tell which pages of {} changed: {why}", path.display())]
    Extents {
        /// The raw memory file.
        path: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// Another process's memory cannot be read.
    #[error("process {pid} {what}")]
    Process {
        /// The process.
        pid: i32,
        /// What is wrong.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pipe ended where memory cannot, or did not where it must.
    #[error("the pipe gave {bytes} bytes, not {}", wanted.map_or_else(|| format!("a positive multiple of the block size {block_size}"), |wanted| wanted.to_string()))]
    PipeLength {
        /// How many bytes came.
        bytes: u64,
        /// How many should have, where that is known.
        wanted: Option<u64>,
        /// Bytes of a block.
        block_size: u64,
    },
    /// Faults found by `verify`.
    #[error("{} has {} fault{}: {}", dir.display(), faults.len(), if faults.len() == 1 { "" } else { "s" }, faults.join("; "))]
    Faults {
        /// The directory.
        dir: PathBuf,
        /// Each of them.
        faults: Vec<String>,
    },
}

impl Error {
    /// Names what an I/O error was about, for `map_err`.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.as_ref().to_owned(), source }
    }

    /// A field that can never work.
    pub fn field(field: &'static str, what: impl Into<String>) -> Self {
        Self::Field { field, what: what.into() }
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Field { .. } => Kind::Invalid,
            Self::Io { source, .. } | Self::Process { source, .. } => Kind::of_io(source),
            Self::NoSnapshot { .. } | Self::NoState { .. } => Kind::NotFound,
            Self::Header { .. }
            | Self::DiffMissing { .. }
            | Self::DiffShort { .. }
            | Self::Plain { .. }
            | Self::Config { .. }
            | Self::Sums { .. }
            | Self::PipeLength { .. }
            | Self::Faults { .. } => Kind::Corrupt,
            Self::Exists { .. } | Self::Busy { .. } | Self::NotASnapshot { .. } => Kind::Conflict,
            Self::Extents { .. } => Kind::Unsupported,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Field { .. } => "snap.field",
            Self::Io { .. } => "snap.io",
            Self::NoSnapshot { .. } => "snap.none",
            Self::NoState { .. } => "snap.no_state",
            Self::Header { .. } => "snap.header",
            Self::DiffMissing { .. } => "snap.diff_missing",
            Self::DiffShort { .. } => "snap.diff_short",
            Self::Plain { .. } => "snap.plain",
            Self::Config { .. } => "snap.config",
            Self::Exists { .. } => "snap.exists",
            Self::Busy { .. } => "snap.busy",
            Self::NotASnapshot { .. } => "snap.not_a_snapshot",
            Self::Extents { .. } => "snap.extents",
            Self::Sums { .. } => "snap.sums",
            Self::Process { .. } => "snap.process",
            Self::PipeLength { .. } => "snap.pipe_length",
            Self::Faults { .. } => "snap.faults",
        }
    }

    fn retry(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }
}
