//! The documents: `<root>/sandboxes/<id>/sandbox.json`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use wire::{Document, Host, Id};

use crate::Error;

const DOCUMENT: &str = "sandbox.json";

/// All sandboxes of a root.
#[derive(Debug, Clone, Copy)]
pub struct Sandboxes<'a> {
    host: &'a Host,
}

impl<'a> Sandboxes<'a> {
    /// The sandboxes of this host's root.
    pub fn of(host: &'a Host) -> Self {
        Self { host }
    }

    /// Takes an id: makes the sandbox's directory, which nobody else can have made.
    ///
    /// # Errors
    /// `conflict` when the id is taken.
    pub fn reserve(&self, id: &Id) -> Result<(), Error> {
        let dir = self.host.sandbox_dir(id);
        let all = self.host.root().join("sandboxes");
        fs::create_dir_all(&all).map_err(Error::file("create", &all))?;
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::SandboxExists { id: id.to_string() })
            }
            done => done.map_err(Error::file("create", &dir)),
        }
    }

    /// The sandbox's document.
    ///
    /// # Errors
    /// `not_found`; `corrupt` when the file holds something else.
    pub fn load(&self, id: &Id) -> Result<Document, Error> {
        let path = self.path(id);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSandbox { id: id.to_string() });
            }
            read => read.map_err(Error::file("read", &path))?,
        };
        let value = serde_json::from_str(&text)
            .map_err(|error| Error::Corrupt { path: path.clone(), why: error.to_string() })?;
        let document = Document::from_value(value)
            .map_err(|error| Error::Corrupt { path: path.clone(), why: error.message })?;
        match document.get("id").and_then(|value| value.as_str()) {
            Some(found) if found == id.as_str() => Ok(document),
            found => Err(Error::Corrupt { path, why: format!("its id is {found:?}") }),
        }
    }

    /// Writes the document: whole or not at all, also across a crash of the host.
    ///
    /// # Errors
    /// What the file system said.
    pub fn save(&self, id: &Id, document: &Document) -> Result<(), Error> {
        let path = self.path(id);
        let mut text = document.clone().into_value().to_string();
        text.push('\n');
        replace(&path, text.as_bytes())
    }

    /// Ids of all sandboxes, in order: every directory of that form, also one that has no document yet.
    ///
    /// # Errors
    /// What reading the directory said.
    pub fn ids(&self) -> Result<Vec<Id>, Error> {
        let all = self.host.root().join("sandboxes");
        let entries = match fs::read_dir(&all) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::file("read", &all))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.map_err(Error::file("read", &all))?.file_name();
            ids.extend(name.to_str().and_then(|name| Id::new(name).ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Removes the sandbox's directory with all that is left in it. Gone already is success.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(&self, id: &Id) -> Result<(), Error> {
        let dir = self.host.sandbox_dir(id);
        // The document last: while it is there, the sandbox can be found and removed again.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name() != DOCUMENT {
                remove_path(&entry.path())?;
            }
        }
        remove_path(&dir)
    }

    fn path(&self, id: &Id) -> PathBuf {
        self.host.sandbox_dir(id).join(DOCUMENT)
    }
}

/// Removes a file or a directory with all that is in it. Gone already is success.
pub(crate) fn remove_path(path: &Path) -> Result<(), Error> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(Error::file("remove", path)),
    }
}

/// Replaces a file's content: written beside it, synced, renamed.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("new");
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_data()
    });
    written.map_err(Error::file("write", &beside))?;
    fs::rename(&beside, path).map_err(Error::file("replace", path))
}

/// Makes renames and links in a directory survive a crash of the host.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::file("sync", dir))
}
