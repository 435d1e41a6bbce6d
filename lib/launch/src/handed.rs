//! Files that a running VMM is to open for us once.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::api::open_dir;

/// A directory of the host, named so that a VMM finds it whatever its mount namespace shows: through our descriptor in
/// /proc. The kernel follows such a link to the directory itself. It is good for as long as this value lives; nothing is
/// mounted, so nothing is left behind by a program that is killed meanwhile.
pub(crate) struct Handed(File);

impl Handed {
    pub fn dir(path: &Path) -> Result<Self, Error> {
        open_dir(path).map(Self).map_err(Error::io("open", path))
    }

    /// The VMM's path of a file in it.
    pub fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        Path::new(&format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())).join(name)
    }
}
