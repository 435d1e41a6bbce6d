//! How a VMM's program is found.

use std::path::{Path, PathBuf};

use wire::Document;

use crate::Error;

/// A VMM's program: the request's `vmm_path`, else [`Place`], else PATH.
pub(crate) struct Program {
    pub name: &'static str,
    pub place: Place,
    /// Where it comes from.
    pub hint: &'static str,
}

/// Where a program is looked for before PATH.
pub(crate) enum Place {
    /// An environment variable may name it.
    Variable(&'static str),
    /// It is one of ours, beside the program that runs.
    Beside,
}

impl Program {
    /// The program's file.
    ///
    /// # Errors
    /// [`Error::NoVmm`]; [`Error::File`] when the request or the variable names what is no program.
    pub fn find(&self, document: &Document) -> Result<PathBuf, wire::Error> {
        if let Some(path) = document.find::<PathBuf>("vmm_path")? {
            return Ok(executable("vmm_path", path)?);
        }
        Ok(self.installed()?.ok_or_else(|| Error::NoVmm { absent: self.absent() })?)
    }

    /// The program's file on this host, whatever a request says; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::File`] when the variable names what is no program: that is a mistake, not an absence.
    pub fn installed(&self) -> Result<Option<PathBuf>, Error> {
        match self.place {
            Place::Variable(variable) => {
                if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
                    let path = std::path::absolute(&path).unwrap_or(path.into());
                    return executable(variable, path).map(Some);
                }
                Ok(in_path(self.name))
            }
            Place::Beside => Ok(beside(self.name).or_else(|| in_path(self.name))),
        }
    }

    /// Where it was looked for in vain.
    pub fn absent(&self) -> String {
        let Self { name, ref place, hint } = *self;
        match place {
            Place::Variable(variable) => format!("no {name} in {variable} or PATH ({hint})"),
            Place::Beside => format!("no {name} beside this program or in PATH ({hint})"),
        }
    }
}

/// A program of ours in the directory of the one that runs.
pub(crate) fn beside(name: &str) -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.with_file_name(name)).filter(|path| is_program(path))
}

/// A program in PATH.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_absolute() && is_program(path))
}

fn executable(field: &'static str, path: PathBuf) -> Result<PathBuf, Error> {
    let wrong = |what, source| Error::File { field, path: path.clone(), what, source };
    let metadata = path.metadata().map_err(|error| wrong("cannot be used", Some(error)))?;
    if is_executable(&metadata) { Ok(path) } else { Err(wrong("is not a program", None)) }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| is_executable(&metadata))
}

fn is_executable(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}
