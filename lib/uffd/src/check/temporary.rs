//! A directory for one scenario's files.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// A directory of its own, gone with everything in it when this goes. Its path is short: sockets lie in it.
#[derive(Debug)]
pub(crate) struct Temporary(PathBuf);

impl Temporary {
    pub fn new() -> Result<Self, Error> {
        let template = std::env::temp_dir().join("wu-check-XXXXXX");
        let made = nix::unistd::mkdtemp(&template);
        made.map(Self).map_err(|errno| Error::io("make", template)(errno.into()))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!("{} stays behind: {error}", self.0.display());
        }
    }
}
