//! Files that a running VMM is to open for us once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::api::open_dir;

/// A directory of the host, named so that a VMM finds it whatever its mount namespace shows: through our descriptor in
/// /proc. The kernel follows such a link to the directory itself. It is good for as long as this value lives; nothing is
/// mounted, so nothing is left behind by a program that is killed meanwhile.
pub(crate) struct Handed {
    dir: File,
    path: PathBuf,
}

impl Handed {
    pub fn dir(path: &Path) -> Result<Self, Error> {
        let dir = open_dir(path).map_err(Error::io("open", path))?;
        Ok(Self { dir, path: path.into() })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The VMM's path of the directory itself. It is good for us too.
    pub fn itself(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.dir.as_raw_fd()).into()
    }

    /// The VMM's path of a file in it.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.itself().join(name)
    }
}
