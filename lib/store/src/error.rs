//! What can go wrong with documents, pauses and templates.

use std::io;
use std::path::PathBuf;

use wire::{Fault, Kind};

/// Failures of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no sandbox of that id.
    #[error("no sandbox {id}")]
    NoSandbox {
        /// The id.
        id: String,
    },
    /// The id is taken.
    #[error("sandbox {id} exists already")]
    SandboxExists {
        /// The id.
        id: String,
    },
    /// There is no template of that name.
    #[error("no template {name}: {path} does not exist", path = path.display())]
    NoTemplate {
        /// The name.
        name: String,
        /// Where it would be.
        path: PathBuf,
    },
    /// The name is taken: a template is never overwritten.
    #[error("template {name} exists already")]
    TemplateExists {
        /// The name.
        name: String,
    },
    /// Sandboxes stand on the template's disk.
    #[error("template {name} is the base of {users}", users = users.join(", "))]
    TemplateInUse {
        /// The name.
        name: String,
        /// Ids of the sandboxes.
        users: Vec<String>,
    },
    /// A file that should hold a JSON object holds something else.
    #[error("{path}: {why}", path = path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file system refused.
    #[error("cannot {what} {path}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the file system refused to do `what` with `path`.
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}

impl Fault for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NoSandbox { .. } | Self::NoTemplate { .. } => Kind::NotFound,
            Self::SandboxExists { .. } | Self::TemplateExists { .. } | Self::TemplateInUse { .. } => {
                Kind::Conflict
            }
            Self::Corrupt { .. } => Kind::Corrupt,
            Self::File { source, .. } => Kind::of_io(source),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoSandbox { .. } => "store.no_sandbox",
            Self::SandboxExists { .. } => "store.sandbox_exists",
            Self::NoTemplate { .. } => "store.no_template",
            Self::TemplateExists { .. } => "store.template_exists",
            Self::TemplateInUse { .. } => "store.template_in_use",
            Self::Corrupt { .. } => "store.corrupt",
            Self::File { .. } => "store.file",
        }
    }
}
