//! The names of a sandbox's kernel objects, which say whose they are.

use std::path::{Path, PathBuf};

use wire::{Host, Id};

/// A sandbox of a root, as the owner of a device, its loop devices and its files.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The sandbox.
    pub id: Id,
    tag: String,
    dir: PathBuf,
}

impl Owner {
    /// That sandbox of that root.
    pub fn new(host: &Host, id: Id) -> Self {
        Self { tag: host.tag(), dir: host.sandbox_dir(&id), id }
    }

    /// The device's name: one for all roots, as names in /dev/mapper are.
    pub fn name(&self) -> String {
        format!("{NAME}{}", self.id)
    }

    /// The device's uuid, by which it is addressed: no other root's device answers to it.
    pub fn uuid(&self) -> String {
        format!("{}{}", uuid_prefix(&self.tag), self.id)
    }

    /// The label of the loop device of the CoW file, the same as the device's uuid.
    pub fn label(&self) -> String {
        self.uuid()
    }

    /// The label of the loop devices of images, which are the root's.
    pub fn origin_label(&self) -> String {
        origin_label(&self.tag)
    }

    /// The sandbox's own directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the files are that live as long as the sandbox runs.
    pub fn live_dir(&self) -> PathBuf {
        live_dir(&self.dir)
    }
}

const NAME: &str = "wrenn-";

/// What the uuids of a root's devices begin with.
pub(crate) fn uuid_prefix(tag: &str) -> String {
    format!("WRENN-{tag}-")
}

/// The label of the loop devices of a root's images.
pub(crate) fn origin_label(tag: &str) -> String {
    format!("WRENN-{tag}")
}

/// The name of that directory.
pub(crate) const LIVE: &str = "live";

/// The directory of live files in a sandbox's own.
pub(crate) fn live_dir(sandbox: &Path) -> PathBuf {
    sandbox.join(LIVE)
}

/// Where device nodes are.
pub(crate) fn node(name: &str) -> PathBuf {
    Path::new("/dev/mapper").join(name)
}
