//! What can go wrong between the host and the agent.

use std::io;
use std::path::PathBuf;

use wire::{Fault, Kind};

/// Failures of talking to the agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `guest.url` nor `net.host_ip` says where the agent is.
    #[error("guest.url: missing, and net.host_ip too; wants http://HOST:PORT")]
    NoUrl,
    /// The URL cannot be used.
    #[error("guest.url: {url:?} is not of the form http://HOST:PORT")]
    BadUrl {
        /// As given.
        url: String,
    },
    /// The agent did not answer in time.
    #[error("the agent at {url} did not answer within {seconds:.1} s")]
    NotReady {
        /// Where it was asked.
        url: String,
        /// How long.
        seconds: f64,
        /// What the last attempt said.
        source: Box<ureq::Error>,
    },
    /// The VM ended while it was waited for.
    #[error("the VM (pid {pid}) ended before its agent answered; see {log}")]
    VmGone {
        /// The VMM's pid.
        pid: i32,
        /// Its log file.
        log: String,
    },
    /// The VM ended while its agent was at work.
    #[error("the VM (pid {pid}) ended during {what}")]
    VmEnded {
        /// The VMM's pid.
        pid: i32,
        /// What was under way.
        what: &'static str,
    },
    /// The connection failed.
    #[error("{what} at {url} failed")]
    Call {
        /// What was asked.
        what: &'static str,
        /// Where.
        url: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The agent answered with an error.
    #[error("the agent refused {what}: {status} {message}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// HTTP status or Connect code.
        status: String,
        /// Its own words.
        message: String,
        /// Whether it was the thing asked for that does not exist.
        not_found: bool,
    },
    /// The guest may still be the one that it is a copy of.
    #[error("the agent does not confirm that the guest is itself: {wrong}")]
    Identity {
        /// What is not so, or not told.
        wrong: String,
    },
    /// The agent's answer makes no sense.
    #[error("the agent's answer to {what} is not understood: {why}")]
    Protocol {
        /// What was asked.
        what: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// Reading from the agent failed midway.
    #[error("the connection to the agent broke during {what}")]
    Broken {
        /// What was under way.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A host file.
    #[error("{path}: cannot {what}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Something did not finish in time.
    #[error("{what} did not finish within {seconds:.1} s")]
    Timeout {
        /// What.
        what: &'static str,
        /// How long.
        seconds: f64,
    },
    /// The preload failed inside the guest.
    #[error("the guest could not preload its memory: {message}")]
    Preload {
        /// The agent's words.
        message: String,
    },
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoUrl | Self::BadUrl { .. } => Kind::Invalid,
            Self::NotReady { .. } | Self::Timeout { .. } => Kind::Timeout,
            Self::Call { source, .. } if matches!(**source, ureq::Error::Timeout(_)) => Kind::Timeout,
            Self::Refused { not_found: true, .. } => Kind::NotFound,
            Self::VmGone { .. }
            | Self::VmEnded { .. }
            | Self::Call { .. }
            | Self::Refused { .. }
            | Self::Identity { .. }
            | Self::Protocol { .. }
            | Self::Broken { .. }
            | Self::Preload { .. } => Kind::Peer,
            Self::File { source, .. } => Kind::of_io(source),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoUrl | Self::BadUrl { .. } => "guest.url",
            Self::NotReady { .. } => "guest.not_ready",
            Self::VmGone { .. } | Self::VmEnded { .. } => "guest.vm_gone",
            Self::Call { .. } => "guest.unreachable",
            Self::Refused { .. } => "guest.refused",
            Self::Identity { .. } => "guest.identity",
            Self::Protocol { .. } => "guest.protocol",
            Self::Broken { .. } => "guest.broken",
            Self::File { .. } => "guest.file",
            Self::Timeout { .. } => "guest.timeout",
            Self::Preload { .. } => "guest.preload",
        }
    }

    fn retry(&self) -> bool {
        matches!(self, Self::NotReady { .. } | Self::Call { .. } | Self::Broken { .. } | Self::Timeout { .. })
    }
}
