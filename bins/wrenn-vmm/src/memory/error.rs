//! What can go wrong with memory.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with memory. An errno's number is in the message of its error ("(os error 28)").
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error("Cannot make {bytes} bytes of guest memory: {source}")]
    Make { bytes: u64, source: io::Error },
    #[error("Cannot map {bytes} bytes of guest memory: {why}")]
    Map { bytes: u64, why: String },
    #[error("Cannot {what} the memory file {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("The memory file {} has {found} bytes, the snapshot's memory {expected}", path.display())]
    Size { path: PathBuf, found: u64, expected: u64 },
    #[error("Cannot write memory file: {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("Cannot reach the page server at {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("Cannot make a userfaultfd: {0}")]
    Uffd(io::Error),
    #[error("Cannot register guest memory with the userfaultfd: {0}")]
    Register(io::Error),
    #[error("Cannot hand guest memory to the page server: {0}")]
    HandOver(io::Error),
    #[error("Cannot watch the page server: {0}")]
    Watch(io::Error),
}

impl Error {
    pub(super) fn file(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { what, path: path.clone(), source }
    }
}
