//! The section `cow` of a document.

use std::path::{Path, PathBuf};

use wire::{Document, FromField, Value};

use crate::device::Attached;

/// How a disk keeps what is written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A dm-snapshot over the image: the file holds the changes.
    Snapshot,
    /// A private copy of the image, which is the disk itself.
    Clone,
}

impl Kind {
    /// Its name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Clone => "clone",
        }
    }
}

impl FromField for Kind {
    const WANTED: &'static str = "\"snapshot\" or \"clone\"";
    fn from_field(value: &Value) -> Option<Self> {
        [Self::Snapshot, Self::Clone].into_iter().find(|kind| Some(kind.name()) == value.as_str())
    }
}

/// A disk as the document tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// How it keeps its changes.
    pub kind: Kind,
    /// The CoW file, or the copy.
    pub file: PathBuf,
    /// The image it is made over.
    pub image: PathBuf,
    /// The size of the disk in bytes, that of the image.
    pub origin_bytes: u64,
    /// The size of the file in bytes, holes included.
    pub file_bytes: u64,
}

/// The section.
pub const SECTION: &str = "cow";

/// Fields of a disk that is up.
const UP: [&str; 6] = ["name", "device", "origin", "loop", "frozen", "usage"];

impl Disk {
    /// Writes the section of a disk that is up. `attached` is `None` for a copy, whose device is its file.
    pub fn write(&self, attached: Option<&Attached>, document: &mut Document) {
        self.write_down(document);
        let mut set = |name: &str, value: &Path| {
            document.set(&format!("{SECTION}.{name}"), value.to_string_lossy().into_owned());
        };
        match attached {
            None => set("device", &self.file),
            Some(attached) => {
                set("name", Path::new(&attached.name));
                set("device", &attached.device);
                set("origin", &attached.origin);
                set("loop", &attached.cow);
            }
        }
    }

    /// Writes the section of a disk that is not up: what `restore` needs.
    pub fn write_down(&self, document: &mut Document) {
        forget_device(document);
        let mut set = |name: &str, value: Value| document.set(&format!("{SECTION}.{name}"), value);
        set("kind", self.kind.name().into());
        set("image", self.image.to_string_lossy().into());
        set("origin_bytes", self.origin_bytes.into());
        set("file", self.file.to_string_lossy().into());
        set("file_bytes", self.file_bytes.into());
    }
}

/// Takes out of the section what is only true of a disk that is up.
pub(crate) fn forget_device(document: &mut Document) {
    for name in UP {
        document.remove(&format!("{SECTION}.{name}"));
    }
}
