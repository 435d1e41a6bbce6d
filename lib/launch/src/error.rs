//! What can go wrong between a document and a VMM.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use wire::{Fault, Kind};

/// Failures of starting and driving a VMM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document names a VMM that there is no driver for.
    #[error("{field}: there is no driver for {name:?} here; there is {known}")]
    UnknownVmm {
        /// Where it is named.
        field: &'static str,
        /// Its name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The VMM's program is nowhere.
    #[error("there is no VMM: {absent}; vmm_path may name one")]
    NoVmm {
        /// Which programs were looked for, where, and where they come from.
        absent: String,
    },
    /// No VMM's state is in a snapshot's directory.
    #[error("snapshot.dir: {} holds no VMM's state ({files})", dir.display())]
    NoState {
        /// The directory.
        dir: PathBuf,
        /// What the state would be called.
        files: String,
    },
    /// A snapshot is of another VMM than the sandbox is to have.
    #[error("snapshot.dir: {} is a snapshot of {vmm}, which {asked} (spec.vmm) cannot load", dir.display())]
    OtherVmm {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        vmm: &'static str,
        /// What is asked for.
        asked: &'static str,
    },
    /// The program of the child half is nowhere.
    #[error("no wrenn-launch beside {beside} or in PATH: it is what starts a VMM")]
    NoHelper {
        /// The directory looked in.
        beside: String,
    },
    /// /dev/kvm cannot be used.
    #[error("/dev/kvm cannot be opened: {}", kvm_remedy(.source))]
    NoKvm {
        /// What open said.
        source: io::Error,
    },
    /// A file that the request names cannot be used.
    #[error("{field}: {path} {what}")]
    File {
        /// The field that names it.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// Why, where the kernel said so.
        source: Option<io::Error>,
    },
    /// The network namespace is not there.
    #[error("net.netns: {path} does not exist; wrenn-net create makes it")]
    NoNetns {
        /// Where it should be.
        path: PathBuf,
    },
    /// A VMM of this id runs already.
    #[error("{id} has a VMM already: something answers on {socket}", socket = .socket.display())]
    Exists {
        /// The sandbox.
        id: String,
        /// Its socket.
        socket: PathBuf,
    },
    /// The VMM of the document has ended.
    #[error("the VMM of {id} (pid {pid}) has ended")]
    Gone {
        /// The sandbox.
        id: String,
        /// Its pid.
        pid: i32,
    },
    /// The process or socket of the document is somebody else's.
    #[error("{what} is not the VMM of {id} under this root: left alone")]
    Foreign {
        /// The sandbox.
        id: String,
        /// The process or socket.
        what: String,
    },
    /// The child half failed before the VMM ran.
    #[error("cannot {step}")]
    Child {
        /// What it was at.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// The VMM ended while it was being started or spoken to.
    #[error("the VMM ended while it was to {doing}{}", .status.as_deref().map(|s| format!(" ({s})")).unwrap_or_default())]
    Died {
        /// What it was asked to do.
        doing: String,
        /// How it ended, where we are its parent.
        status: Option<String>,
    },
    /// The VMM did not answer in time.
    #[error("the VMM did not {what} within {} s", limit.as_secs())]
    Timeout {
        /// What it was asked to do.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A signal asked this program to end.
    #[error("interrupted by a signal while the VMM was to {0}")]
    Interrupted(String),
    /// The VMM answered with an error.
    #[error("the VMM refused to {what} ({status}): {fault}")]
    Api {
        /// What it was asked to do.
        what: String,
        /// HTTP status.
        status: u16,
        /// Its own words.
        fault: String,
    },
    /// The VMM had no room to write.
    #[error("no space to {what}: {fault}")]
    NoSpace {
        /// What it was asked to do.
        what: String,
        /// Its own words.
        fault: String,
    },
    /// The VMM's answer makes no sense, or its socket fails.
    #[error("cannot speak to the VMM to {what}: {why}")]
    Protocol {
        /// What it was asked to do.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The VM is in another state than the verb needs.
    #[error("the VM of {id} is {state}: {needs}")]
    State {
        /// The sandbox.
        id: String,
        /// Its state.
        state: String,
        /// What to do.
        needs: &'static str,
    },
    /// A Diff would not be relative to the parent named.
    #[error("a diff against {parent} is not possible: {why}; take a full snapshot")]
    Base {
        /// The parent asked for.
        parent: String,
        /// What the VMM's dirty log is relative to.
        why: String,
    },
    /// A file that the snapshot is to write is there already.
    #[error("snapshot.dir: {path} exists already; a snapshot goes to fresh files")]
    SnapshotExists {
        /// The file.
        path: PathBuf,
    },
    /// This VMM writes all of memory or nothing.
    #[error(
        "snapshot.kind: {vmm} dumps no diffs; take a full snapshot, of which wrenn-snap pack with a parent keeps only what differs"
    )]
    NoDiffs {
        /// The VMM.
        vmm: &'static str,
    },
    /// This VMM reads its memory from a file.
    #[error(
        "uffd: {vmm} takes no page server; wrenn-snap unpack makes a file of a snapshot's memory, for snapshot.raw"
    )]
    NoServer {
        /// The VMM.
        vmm: &'static str,
    },
    /// The VMM is too old for what is asked of it.
    #[error("{vmm} {version} is too old: it {lacks}; {least} or newer does")]
    Version {
        /// The VMM.
        vmm: &'static str,
        /// What it says it is.
        version: String,
        /// What it cannot do.
        lacks: &'static str,
        /// The first version that can.
        least: u64,
    },
    /// The VMM has not read all of the VM's memory yet.
    #[error(
        "the VM's memory is not complete: its VMM is still reading the snapshot that it came from; try again later \
         (its log says so if it has given up)"
    )]
    Lazy,
    /// A balloon larger than the guest.
    #[error("balloon.amount_mib: is {mib}, and the guest has {memory_mib}")]
    Balloon {
        /// What was asked for.
        mib: u64,
        /// The guest's memory.
        memory_mib: u64,
    },
    /// A file of a snapshot cannot be what it should be.
    #[error("{path} {why}", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A snapshot of a machine that is none of ours.
    #[error("{path}: {why}", path = .path.display())]
    Machine {
        /// The file that says so.
        path: PathBuf,
        /// What is not supported.
        why: &'static str,
    },
    /// The place where a snapshot wants its root disk cannot be made.
    #[error("{path}: {why}", path = .path.display())]
    SandboxDir {
        /// The file that names it.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The page server of the document has ended.
    #[error("uffd.pid: the page server (pid {pid}) has ended; wrenn-uffd serve starts one")]
    NoPageServer {
        /// Its pid.
        pid: i32,
    },
    /// The directory holds no memory that can be loaded without a page server.
    #[error("snapshot.dir: {} holds no plain memory file; {way}wrenn-snap unpack into snapshot.raw", dir.display())]
    NoMemory {
        /// The directory.
        dir: PathBuf,
        /// The other way to memory, where there is one.
        way: &'static str,
    },
    /// A file of ours.
    #[error("cannot {what} {path}", path = .path.display())]
    Io {
        /// The attempt.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: an attempt on a file of ours that failed.
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::UnknownVmm { .. }
            | Self::NoVmm { .. }
            | Self::NoHelper { .. }
            | Self::NoKvm { .. }
            | Self::NoDiffs { .. }
            | Self::NoServer { .. }
            | Self::Version { .. } => Kind::Unsupported,
            Self::File { source, .. } => source.as_ref().map_or(Kind::Invalid, Kind::of_io),
            Self::NoNetns { .. } | Self::Gone { .. } | Self::NoPageServer { .. } | Self::NoState { .. } => {
                Kind::NotFound
            }
            Self::Exists { .. }
            | Self::Foreign { .. }
            | Self::State { .. }
            | Self::Base { .. }
            | Self::Lazy
            | Self::SnapshotExists { .. } => Kind::Conflict,
            Self::Child { source, .. } | Self::Io { source, .. } => Kind::of_io(source),
            Self::Died { .. } | Self::Api { .. } | Self::Protocol { .. } => Kind::Peer,
            Self::Timeout { .. } | Self::Interrupted(_) => Kind::Timeout,
            Self::NoSpace { .. } => Kind::Exhausted,
            Self::NoMemory { .. }
            | Self::OtherVmm { .. }
            | Self::Balloon { .. }
            | Self::Machine { .. }
            | Self::SandboxDir { .. } => Kind::Invalid,
            Self::Corrupt { .. } => Kind::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::UnknownVmm { .. } => "launch.vmm",
            Self::NoVmm { .. } => "launch.vmm_absent",
            Self::NoState { .. } => "launch.no_state",
            Self::OtherVmm { .. } => "launch.other_vmm",
            Self::NoHelper { .. } => "launch.helper_absent",
            Self::NoKvm { .. } => "launch.kvm",
            Self::File { .. } => "launch.file",
            Self::NoNetns { .. } => "launch.netns",
            Self::Exists { .. } => "launch.exists",
            Self::Gone { .. } => "launch.gone",
            Self::Foreign { .. } => "launch.foreign",
            Self::Child { .. } => "launch.child",
            Self::Died { .. } => "launch.died",
            Self::Timeout { .. } => "launch.timeout",
            Self::Interrupted(_) => "wire.interrupted",
            Self::Api { .. } => "launch.api",
            Self::NoSpace { .. } => "launch.no_space",
            Self::Protocol { .. } => "launch.protocol",
            Self::State { .. } => "launch.state",
            Self::Base { .. } => "launch.base",
            Self::NoDiffs { .. } => "launch.no_diffs",
            Self::NoServer { .. } => "launch.no_server",
            Self::Version { .. } => "launch.version",
            Self::Lazy => "launch.lazy",
            Self::Balloon { .. } => "launch.balloon",
            Self::Corrupt { .. } => "launch.corrupt",
            Self::Machine { .. } => "launch.machine",
            Self::SandboxDir { .. } => "launch.sandbox_dir",
            Self::SnapshotExists { .. } => "launch.snapshot_exists",
            Self::NoPageServer { .. } => "launch.no_page_server",
            Self::NoMemory { .. } => "launch.no_memory",
            Self::Io { .. } => "launch.io",
        }
    }

    fn retry(&self) -> bool {
        matches!(self, Self::Interrupted(_) | Self::Timeout { .. } | Self::Lazy)
    }
}

fn kvm_remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => {
            "there is none; turn on virtualisation, load kvm_intel or kvm_amd, or use scripts/lab"
        }
        Some(Errno::EACCES | Errno::EPERM) => "run as root or as a member of the group kvm",
        _ => "the kvm module offers no virtual machines here; scripts/lab has a usable one",
    }
}
