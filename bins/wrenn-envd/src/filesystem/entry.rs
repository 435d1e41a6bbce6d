//! One name in the file system: described, made, given away, removed.

use std::{
    fs::{self, DirBuilder, File, Metadata},
    io,
    os::unix::fs::{MetadataExt as _, chown, fchown},
    path::Path,
};

use buffa_types::google::protobuf::Timestamp;
use nix::{errno::Errno, unistd::geteuid};

use crate::{
    proto::filesystem::{EntryInfo, FileType},
    users::{User, group_name, user_name},
};

/// Describes what is at `path`. A link's size, mode and owner are its own; its type is its target's, which is what
/// the field's clients go by.
///
/// # Errors
/// As lstat(2) says.
pub fn info(path: &Path) -> io::Result<EntryInfo> {
    let meta = fs::symlink_metadata(path)?;
    let target = meta.is_symlink().then(|| fs::read_link(path)).transpose()?;
    let kind = fs::metadata(path).map_or(FileType::FILE_TYPE_SYMLINK, |meta| match () {
        () if meta.is_dir() => FileType::FILE_TYPE_DIRECTORY,
        () if meta.is_file() => FileType::FILE_TYPE_FILE,
        () => FileType::FILE_TYPE_UNSPECIFIED,
    });
    Ok(EntryInfo {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        r#type: kind.into(),
        path: path.to_string_lossy().into_owned(),
        size: meta.size().cast_signed(),
        mode: meta.mode() & 0o7777,
        permissions: permissions(&meta),
        owner: user_name(meta.uid()),
        group: group_name(meta.gid()),
        modified_time: Timestamp {
            seconds: meta.mtime(),
            nanos: i32::try_from(meta.mtime_nsec()).unwrap_or_default(),
            ..Default::default()
        }
        .into(),
        symlink_target: target.map(|target| target.to_string_lossy().into_owned()),
        ..Default::default()
    })
}

/// As ls shows them, without the rare letters for set-id and sticky.
fn permissions(meta: &Metadata) -> String {
    let kind = match () {
        () if meta.is_dir() => 'd',
        () if meta.is_symlink() => 'l',
        () => '-',
    };
    let bit = |at: u32, letter| if meta.mode() & (1 << at) == 0 { '-' } else { letter };
    let bits = (0..9).rev().map(|at| bit(at, ['x', 'w', 'r'][at as usize % 3]));
    std::iter::once(kind).chain(bits).collect()
}

/// Makes a directory and what is missing above it, all of it the user's.
///
/// # Errors
/// As mkdir(2) and chown(2) say; a directory that is there already is none.
pub fn make_directories(path: &Path, user: &User) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directories(parent, user)?;
    }
    match DirBuilder::new().create(path) {
        Ok(()) if geteuid().is_root() => chown(path, Some(user.uid), Some(user.gid)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if path.is_dir() {
                Ok(())
            } else {
                Err(Errno::ENOTDIR.into())
            }
        }
        made => made,
    }
}

/// Makes the user the owner of an open file, where the agent may.
///
/// # Errors
/// As fchown(2) says.
pub fn give(file: &File, user: &User) -> io::Result<()> {
    if geteuid().is_root() { fchown(file, Some(user.uid), Some(user.gid)) } else { Ok(()) }
}

/// Removes a file, a link, or a whole tree. What is not there is removed already.
///
/// # Errors
/// As unlink(2) and rmdir(2) say.
pub fn remove(path: &Path) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(Errno::EINVAL.into()); // the root, or `..`: surely a mistake
    }
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
