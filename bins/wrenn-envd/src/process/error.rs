//! What can be wrong with a request about a process.

use std::{io, path::PathBuf};

use connectrpc::{ConnectError, ErrorCode};

use crate::agent::UnknownUser;

/// Each variant has one Connect code.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{what}: {value:?} {problem}")]
    Invalid { what: &'static str, value: String, problem: &'static str },
    #[error(transparent)]
    UnknownUser(#[from] UnknownUser),
    #[error("the agent runs as user {own} and cannot start processes of {wanted}")]
    OtherUser { own: String, wanted: String },
    #[error("no such command: {0}")]
    NoCommand(String),
    #[error("not executable: {}", .0.display())]
    NotExecutable(PathBuf),
    #[error("working directory {} does not exist", .0.display())]
    NoDirectory(PathBuf),
    #[error("working directory {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("a process tagged {0:?} is running already")]
    TagInUse(String),
    #[error("no running process {0}")]
    NoProcess(String),
    #[error("process {0} has no open stdin")]
    NoStdin(u32),
    #[error("process {0} has no terminal")]
    NoTerminal(u32),
    #[error("process {0} has a terminal: send it input as pty; its end of file is 0x04")]
    HasTerminal(u32),
    #[error("process {0} ended before it read its input")]
    Ended(u32),
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
}

impl Error {
    /// For `map_err`: what was being done when the kernel said no.
    pub fn io<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io { doing, source: source.into() }
    }
}

impl From<Error> for ConnectError {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Missing(_) | Error::Invalid { .. } => ErrorCode::InvalidArgument,
            Error::UnknownUser(_) => ErrorCode::Unauthenticated,
            Error::OtherUser { .. } | Error::NotExecutable(_) => ErrorCode::PermissionDenied,
            Error::NoCommand(_) | Error::NoDirectory(_) | Error::NoProcess(_) => ErrorCode::NotFound,
            Error::NotADirectory(_) => ErrorCode::InvalidArgument,
            Error::TagInUse(_) => ErrorCode::AlreadyExists,
            Error::NoStdin(_) | Error::NoTerminal(_) | Error::HasTerminal(_) | Error::Ended(_) => {
                ErrorCode::FailedPrecondition
            }
            Error::Io { source, .. } => match source.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EAGAIN | nix::errno::Errno::ENOMEM | nix::errno::Errno::EMFILE) => {
                    ErrorCode::ResourceExhausted
                }
                _ => ErrorCode::Internal,
            },
        };
        Self::new(code, error.to_string())
    }
}
