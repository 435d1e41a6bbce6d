//! A sandbox's pauses: `gen-0003/` beside `gen-0002/`, and the link `pause` to the last complete one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wire::{Host, Id};

use crate::Error;
use crate::sandboxes::{remove_path, sync_dir};

const LINK: &str = "pause";
const PREFIX: &str = "gen-";

/// The pauses of one sandbox.
#[derive(Debug, Clone)]
pub struct Pauses {
    dir: PathBuf,
}

impl Pauses {
    /// The pauses of this sandbox.
    pub fn of(host: &Host, id: &Id) -> Self {
        Self { dir: host.sandbox_dir(id) }
    }

    /// The last complete pause, if there is one.
    ///
    /// # Errors
    /// `corrupt` when the link leads nowhere; what the file system said.
    pub fn last(&self) -> Result<Option<PathBuf>, Error> {
        let link = self.dir.join(LINK);
        let target = match fs::read_link(&link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            target => target.map_err(Error::file("read", &link))?,
        };
        let dir = self.dir.join(target);
        if dir.is_dir() {
            Ok(Some(dir))
        } else {
            Err(Error::Corrupt { path: link, why: format!("{} is gone", dir.display()) })
        }
    }

    /// All generations on disk, complete or not, oldest first.
    ///
    /// # Errors
    /// What reading the directory said.
    pub fn all(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::file("read", &self.dir))?,
        };
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())))
            .collect();
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// Where the next pause goes: one more than the highest there is. Not made yet.
    ///
    /// # Errors
    /// What reading the directory said.
    pub fn next(&self) -> Result<PathBuf, Error> {
        let last = self.all()?.last().and_then(|path| number(path.file_name()?.to_str()?)).unwrap_or(0);
        Ok(self.dir.join(format!("{PREFIX}{:04}", last + 1)))
    }

    /// Makes this generation the last complete pause. The earlier ones are still there.
    ///
    /// # Errors
    /// What the file system said.
    pub fn publish(&self, generation: &Path) -> Result<(), Error> {
        let name = generation.file_name().unwrap_or(generation.as_os_str());
        let beside = self.dir.join("pause.new");
        remove_path(&beside)?;
        std::os::unix::fs::symlink(name, &beside).map_err(Error::file("link", &beside))?;
        let link = self.dir.join(LINK);
        fs::rename(&beside, &link).map_err(Error::file("replace", &link))?;
        sync_dir(&self.dir)
    }
}

fn number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix(PREFIX)?;
    if digits.len() < 4 { None } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_names_the_last_complete_pause() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), root.path().join("run"));
        let pauses = Pauses::of(&host, &Id::new("a").unwrap());
        assert_eq!(pauses.last().unwrap(), None);
        let first = pauses.next().unwrap();
        assert!(first.ends_with("sandboxes/a/gen-0001"), "{first:?}");
        fs::create_dir_all(&first).unwrap();
        pauses.publish(&first).unwrap();
        let second = pauses.next().unwrap();
        fs::create_dir(&second).unwrap();
        assert_eq!(pauses.last().unwrap(), Some(first.clone()), "made, but not published");
        pauses.publish(&second).unwrap();
        assert_eq!(pauses.last().unwrap(), Some(second.clone()));
        fs::remove_dir(&first).unwrap();
        assert!(pauses.next().unwrap().ends_with("gen-0003"), "a number is never used again");
        fs::remove_dir(&second).unwrap();
        assert!(matches!(pauses.last(), Err(Error::Corrupt { .. })));
    }
}
