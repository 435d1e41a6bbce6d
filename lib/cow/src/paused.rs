//! A paused disk in a snapshot directory: `rootfs.cow` with its description `rootfs.meta` beside it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use wire::{FromField, Value, json};

use crate::Error;
use crate::disk::Kind;
use crate::new_file::{NewFile, copy, sync_dir};

/// The disk's name in a snapshot directory.
pub const FILE: &str = "rootfs.cow";
/// The name of its description.
pub const META: &str = "rootfs.meta";

/// What `rootfs.meta` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// The image the disk is made over. The original knows this field only.
    pub base_template: PathBuf,
    /// How the disk keeps its changes; without it, as a snapshot.
    pub kind: Kind,
    /// The image's size in bytes, if it is told.
    pub origin_bytes: Option<u64>,
}

impl Meta {
    /// Reads the description beside a paused disk. `None` when there is none.
    ///
    /// # Errors
    /// When it is not one.
    pub fn beside(file: &Path) -> Result<Option<Self>, Error> {
        let path = file.with_file_name(META);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(Error::io("read", &path))?,
        };
        Self::parse(&text).map(Some).map_err(|why| Error::Meta { path, why })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let wrong = |field: &str| format!("{field} is missing or wrong");
        let absent = |name: &str| value.get(name).is_none_or(Value::is_null);
        Ok(Self {
            base_template: value
                .get("base_template")
                .and_then(PathBuf::from_field)
                .ok_or_else(|| wrong("base_template"))?,
            kind: match value.get("kind") {
                _ if absent("kind") => Kind::Snapshot,
                kind => kind.and_then(Kind::from_field).ok_or_else(|| wrong("kind"))?,
            },
            origin_bytes: match value.get("origin_bytes") {
                _ if absent("origin_bytes") => None,
                bytes => Some(bytes.and_then(u64::from_field).ok_or_else(|| wrong("origin_bytes"))?),
            },
        })
    }

    fn write(&self, dir: &Path) -> std::io::Result<()> {
        let text = json!({
            "base_template": self.base_template.to_string_lossy(),
            "kind": self.kind.name(),
            "origin_bytes": self.origin_bytes,
        });
        let mut new = NewFile::in_dir(dir, 0o644)?;
        new.file.write_all(text.to_string().as_bytes())?;
        new.file.sync_all()?;
        new.replace(&dir.join(META))
    }
}

/// Puts a disk that is not in use any more into a snapshot directory: as another name of its file, or as a copy on
/// another file system. When this returns both names are durable; the file still has the old one too.
pub(crate) fn keep(live: &Path, dir: &Path, meta: &Meta) -> Result<PathBuf, Error> {
    let kept = dir.join(FILE);
    let file = File::open(live).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::FileGone { path: live.to_owned() },
        _ => Error::io("open", live)(source),
    })?;
    if kept.exists() && !is_same(live, &kept) {
        return Err(Error::Exists { what: kept.display().to_string() });
    }
    file.sync_all().map_err(Error::io("sync", live))?;
    let described = dir.join(META).exists();
    meta.write(dir).map_err(Error::io("write", dir.join(META)))?;
    put(live, &file, dir, &kept).inspect_err(|_| {
        if !described {
            let _ = std::fs::remove_file(dir.join(META));
        }
    })?;
    sync_dir(dir).map_err(Error::io("sync", dir))?;
    Ok(kept)
}

/// Gives the file its name in the snapshot directory, if it has not got it yet.
fn put(live: &Path, file: &File, dir: &Path, kept: &Path) -> Result<(), Error> {
    if is_same(live, kept) {
        return Ok(());
    }
    match std::fs::hard_link(live, kept) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            let new = NewFile::in_dir(dir, 0o600).map_err(Error::io("make a file in", dir))?;
            copy(file, &new.file)
                .and_then(|()| new.file.sync_all())
                .and_then(|()| new.publish(kept))
                .map_err(Error::io("write", kept))
        }
        linked => linked.map_err(Error::io("write", kept)),
    }
}

/// Whether both are names of one file.
pub(crate) fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_description_is_understood_and_a_wrong_one_is_not() {
        let meta = Meta::parse(br#"{"base_template": "/images/minimal/rootfs.ext4"}"#).unwrap();
        assert_eq!(meta.base_template, Path::new("/images/minimal/rootfs.ext4"));
        assert_eq!((meta.kind, meta.origin_bytes), (Kind::Snapshot, None));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"base_template": 1}"#,
            r#"{"base_template": "/x", "kind": "other"}"#,
            r#"{"base_template": "/x", "origin_bytes": -1}"#,
        ] {
            assert!(Meta::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_description_that_is_written_reads_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Meta { base_template: "/x y".into(), kind: Kind::Clone, origin_bytes: Some(512) };
        for _ in 0..2 {
            meta.write(dir.path()).unwrap();
            assert_eq!(Meta::beside(&dir.path().join(FILE)).unwrap(), Some(meta.clone()));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }
}
