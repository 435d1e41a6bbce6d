//! What can go wrong with the page server, and what each failure is called.

use std::io;
use std::path::PathBuf;

use snap::Place;
use wire::{Fault, Kind, Value, json};

/// A page that the image should have, and does not give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostPage {
    /// Offset into memory.
    pub offset: u64,
    /// Where it is stored.
    pub place: Place,
}

impl LostPage {
    fn of_build(&self) -> String {
        self.place.build.map(|build| format!(", build {build}")).unwrap_or_default()
    }

    /// As an event.
    pub(crate) fn to_json(&self) -> Value {
        let Place { path, build, offset } = &self.place;
        json!({"offset": self.offset, "build": build.map(|build| build.to_string()), "build_offset": offset,
               "path": path})
    }
}

/// The code of [`Error::NotRunning`], as a server may say it of another one.
pub(crate) const NOT_RUNNING: &str = "uffd.not_running";

/// A failure of wrenn-uffd's work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory image cannot be used.
    #[error(transparent)]
    Image(#[from] snap::Error),
    /// The kernel refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A Unix socket's path does not fit its address.
    #[error("{field}: {} has {length} bytes, and a Unix socket's path ends at 107; choose a shorter WRENN_RUN or path", path.display())]
    PathTooLong {
        /// The request's field.
        field: &'static str,
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// Another server listens there.
    #[error("{} is in use: another page server listens there", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path of a socket is taken by something else.
    #[error("{} exists and is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// What is to be replaced by a trace is something else.
    #[error("{} exists and is no trace", path.display())]
    NotATrace {
        /// The path.
        path: PathBuf,
    },
    /// The VMM's first message cannot be used.
    #[error("the VMM's handshake {what}")]
    Handshake {
        /// What is wrong with it.
        what: String,
    },
    /// The VMM did not finish its handshake.
    #[error("the VMM connected and did not finish its handshake within {seconds} s: {what}")]
    HandshakeLate {
        /// The limit.
        seconds: f64,
        /// What is missing.
        what: &'static str,
    },
    /// The VMM has more memory than the image.
    #[error("the image has {size} bytes, the VMM's memory reaches to {wanted}")]
    ImageShort {
        /// Bytes of the image.
        size: u64,
        /// Where the last region ends.
        wanted: u64,
    },
    /// The image could not be read while a page was copied from it, or is not what was stored.
    #[error("the image has no page for offset {}: {} at offset {}{} {}", page.offset, page.place.path.display(), page.place.offset, page.of_build(), match source.kind() { io::ErrorKind::InvalidData => "differs from its checksum", _ => "cannot be read; was it cut short?" })]
    ImageLost {
        /// The page.
        page: LostPage,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another image has the name of the one that a VM began with.
    #[error("{} is another image than when this service began", path.display())]
    ImageReplaced {
        /// The name.
        path: PathBuf,
    },
    /// Something happened to the VMM's memory that cannot be served.
    #[error("the VMM's memory {what}, which this server does not follow")]
    Event {
        /// What happened.
        what: String,
    },
    /// The kernel would not fill a page.
    #[error("cannot fill memory at offset {offset}")]
    Fill {
        /// Offset into memory.
        offset: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory that outlives the server cannot be had, or is not what it must be.
    #[error("cannot keep what is known of the VM in shared memory")]
    State {
        /// What the kernel said.
        source: io::Error,
    },
    /// Reading events failed.
    #[error("cannot read the VMM's page faults")]
    Events {
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no server.
    #[error("no page server answers at {}", control.display())]
    NotRunning {
        /// Its control socket.
        control: PathBuf,
    },
    /// There are several VMs, and which is meant was not said.
    #[error(
        "the page server serves several VMs: which was dumped? The document's vm has pid, start_time and boot_id"
    )]
    WhichVm,
    /// There are several VMs, and this is none of them.
    #[error("the page server does not serve pid {pid}, or no longer")]
    NotServed {
        /// The VMM that was named.
        pid: i32,
    },
    /// Nobody would start another server.
    #[error("the page server's guardian, pid {pid}, is gone: nobody would start another one in its place")]
    NoGuardian {
        /// The guardian.
        pid: i32,
    },
    /// No other server came.
    #[error("the page server ended, and no other came in its place; {} says why", log.display())]
    NotRestarted {
        /// What the guardian wrote.
        log: PathBuf,
    },
    /// There is a server that says nothing.
    #[error("the page server at {} does not answer within {seconds} s", control.display())]
    NoAnswer {
        /// Its control socket.
        control: PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// The VM would hang.
    #[error(
        "the VMM, pid {pid}, still runs and {missing} bytes of its memory are only in the image: stop it first (wrenn-launch stop), or say force:=true to stop both"
    )]
    VmAlive {
        /// The VMM.
        pid: i32,
        /// Bytes not yet loaded.
        missing: u64,
    },
    /// The server ended without saying why.
    #[error("the page server died: {how}")]
    Died {
        /// Exit status or signal.
        how: String,
    },
    /// The program that serves is not there.
    #[error("the program wrenn-uffd is neither in {} nor in PATH", dir.display())]
    NoProgram {
        /// Where this program lies.
        dir: PathBuf,
    },
    /// A file is no trace.
    #[error("{} is no trace: {fault}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: crate::trace::TraceFault,
    },
    /// This user may not have a userfaultfd, so it cannot play a VMM.
    #[error("no userfaultfd here: it needs CAP_SYS_PTRACE, or read-write access to /dev/userfaultfd")]
    NoUserfaultfd {
        /// What the kernel said.
        source: io::Error,
    },
    /// Two of our processes do not understand each other.
    #[error("the page server answered with something else than expected: {what}")]
    Protocol {
        /// What it said.
        what: String,
    },
}

impl Error {
    /// Names what an I/O error was about, for `map_err`.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Io { source, .. }
            | Self::Fill { source, .. }
            | Self::Events { source }
            | Self::State { source } => Kind::of_io(source),
            Self::PathTooLong { .. } | Self::WhichVm => Kind::Invalid,
            Self::ImageReplaced { .. }
            | Self::InUse { .. }
            | Self::NotASocket { .. }
            | Self::NotATrace { .. }
            | Self::VmAlive { .. }
            | Self::NoGuardian { .. } => Kind::Conflict,
            Self::Handshake { .. } | Self::Event { .. } => Kind::Peer,
            Self::HandshakeLate { .. } | Self::NoAnswer { .. } => Kind::Timeout,
            Self::ImageShort { .. } | Self::ImageLost { .. } | Self::Trace { .. } => Kind::Corrupt,
            Self::NotRunning { .. } | Self::NotServed { .. } => Kind::NotFound,
            Self::NoProgram { .. } | Self::NoUserfaultfd { .. } => Kind::Unsupported,
            Self::Died { .. } | Self::NotRestarted { .. } | Self::Protocol { .. } => Kind::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Image(error) => error.code(),
            Self::Io { .. } => "uffd.io",
            Self::PathTooLong { .. } => "uffd.path",
            Self::InUse { .. } => "uffd.in_use",
            Self::NotASocket { .. } => "uffd.not_a_socket",
            Self::NotATrace { .. } => "uffd.not_a_trace",
            Self::Handshake { .. } => "uffd.handshake",
            Self::HandshakeLate { .. } => "uffd.handshake_late",
            Self::ImageShort { .. } => "uffd.image_short",
            Self::ImageLost { .. } => "uffd.image_lost",
            Self::ImageReplaced { .. } => "uffd.image_replaced",
            Self::Event { .. } => "uffd.event",
            Self::Fill { .. } => "uffd.fill",
            Self::Events { .. } => "uffd.events",
            Self::State { .. } => "uffd.state",
            Self::NotRunning { .. } => NOT_RUNNING,
            Self::WhichVm => "uffd.which_vm",
            Self::NotServed { .. } => "uffd.not_served",
            Self::NoGuardian { .. } => "uffd.no_guardian",
            Self::NoAnswer { .. } => "uffd.no_answer",
            Self::VmAlive { .. } => "uffd.vm_alive",
            Self::Died { .. } => "uffd.died",
            Self::NotRestarted { .. } => "uffd.not_restarted",
            Self::NoProgram { .. } => "uffd.no_program",
            Self::Trace { .. } => "uffd.trace",
            Self::NoUserfaultfd { .. } => "uffd.no_userfaultfd",
            Self::Protocol { .. } => "uffd.protocol",
        }
    }
}
