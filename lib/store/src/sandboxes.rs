//! The documents: `<root>/sandboxes/<id>/sandbox.json`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use wire::{Document, Host, Id};

use crate::Error;

const DOCUMENT: &str = "sandbox.json";

/// The document as it was last saved, while later ones are on their way that are not synced.
const SAVED: &str = "sandbox.saved";

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
        let current = read(self.path(id), id);
        // The host crashed after a note that had not reached its disk.
        if matches!(current, Err(Error::Corrupt { .. }))
            && let Ok(saved) = read(self.saved(id), id)
        {
            log::warn!("{id}: the document of its last step is damaged; the one saved before counts");
            return Ok(saved);
        }
        current
    }

    /// Writes the document: whole or not at all, also across a crash of the host.
    ///
    /// # Errors
    /// What the file system said.
    pub fn save(&self, id: &Id, document: &Document) -> Result<(), Error> {
        let path = self.path(id);
        let beside = write_beside(&path, document, File::sync_data)?;
        fs::rename(&beside, &path).map_err(Error::file("replace", &path))?;
        remove_path(&self.saved(id))
    }

    /// Writes the document without waiting for a disk: for what only matters after the death of this process. Should the host
    /// crash as well, the document is as it was last saved.
    ///
    /// # Errors
    /// What the file system said; the document is as it was.
    pub fn note(&self, id: &Id, document: &Document) -> Result<(), Error> {
        let (path, saved) = (self.path(id), self.saved(id));
        let beside = write_beside(&path, document, |_| Ok(()))?;
        // Some file systems give a file its name before they give it its content.
        let kept = match fs::hard_link(&path, &saved) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked.map_err(Error::file("make", &saved)),
        };
        kept.and_then(|()| fs::rename(&beside, &path).map_err(Error::file("replace", &path)))
            .inspect_err(|_| drop(fs::remove_file(&beside)))
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

    fn saved(&self, id: &Id) -> PathBuf {
        self.host.sandbox_dir(id).join(SAVED)
    }
}

fn read(path: PathBuf, id: &Id) -> Result<Document, Error> {
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoSandbox { id: id.to_string() });
        }
        read => read.map_err(Error::file("read", &path))?,
    };
    let corrupt = |why: String| Error::Corrupt { path: path.clone(), why };
    let value = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
    let document = Document::from_value(value).map_err(|error| corrupt(error.message))?;
    match document.get("id").and_then(|value| value.as_str()) {
        Some(found) if found == id.as_str() => Ok(document),
        found => Err(corrupt(format!("its id is {found:?}"))),
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

/// Writes a document into a new file beside its place.
fn write_beside(
    path: &Path,
    document: &Document,
    sync: impl FnOnce(&File) -> io::Result<()>,
) -> Result<PathBuf, Error> {
    let beside = path.with_extension("new");
    let mut text = document.clone().into_value().to_string();
    text.push('\n');
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        sync(&file)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        Error::file("write", &beside)(error)
    })?;
    Ok(beside)
}

/// Makes renames and links in a directory survive a crash of the host.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::file("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_that_a_crash_of_the_host_has_torn_leaves_the_document_that_was_saved_before() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), root.path().join("run"));
        let (sandboxes, id) = (Sandboxes::of(&host), Id::new("a").unwrap());
        sandboxes.reserve(&id).unwrap();
        let document = |step: u32| {
            let mut document = Document::new();
            document.set("id", "a");
            document.set("step", step);
            document
        };
        let path = sandboxes.path(&id);
        sandboxes.save(&id, &document(1)).unwrap();
        for step in [2, 3] {
            sandboxes.note(&id, &document(step)).unwrap();
            assert_eq!(sandboxes.load(&id).unwrap(), document(step));
        }
        // As a file system leaves a file that was renamed and never written back.
        fs::write(&path, "").unwrap();
        assert_eq!(sandboxes.load(&id).unwrap(), document(1));
        sandboxes.save(&id, &document(4)).unwrap();
        let names: Vec<_> = fs::read_dir(host.sandbox_dir(&id)).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "nothing else stays: {names:?}");
        fs::write(&path, "").unwrap();
        assert!(matches!(sandboxes.load(&id), Err(Error::Corrupt { .. })), "no saved one is left to count");
    }
}
