//! A snapshot directory: the names in it, and how they are read.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::Error;
use crate::header::Header;

/// The header. A directory that has one holds a complete memory image.
pub const HEADER: &str = "memfile.header";
/// The diff file of a snapshot that is older than diff files' own names.
pub const PLAIN: &str = "memfile";

/// Where a build's diff file lies.
pub fn diff_path(dir: &Path, build: Uuid) -> PathBuf {
    dir.join(format!("memfile.{build}"))
}

/// Where the header lies.
pub fn header_path(dir: &Path) -> PathBuf {
    dir.join(HEADER)
}

/// Reads a snapshot's header.
///
/// # Errors
/// `not_found` when there is no directory or no header in it, `corrupt` when it cannot be believed.
pub fn read_header(dir: &Path) -> Result<Header, Error> {
    let path = header_path(dir);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound && dir.is_dir() => {
            return Err(Error::NoSnapshot { dir: dir.to_owned() });
        }
        Err(error) => return Err(Error::io("read", path)(error)),
    };
    Header::parse(&bytes).map_err(|fault| Error::Header { path, fault })
}

/// Opens the diff file of a build that a header in `dir` refers to. Old snapshots, which have one build, call it
/// `memfile`.
///
/// # Errors
/// `corrupt` when there is none.
pub fn open_diff(dir: &Path, header: &Header, build: Uuid) -> Result<(PathBuf, File), Error> {
    let path = diff_path(dir, build);
    let opened = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_only_build(header, build) => {
            let plain = dir.join(PLAIN);
            File::open(&plain).map(|file| (plain, file))
        }
        opened => opened.map(|file| (path.clone(), file)),
    };
    opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::DiffMissing { path, header: header_path(dir) },
        _ => Error::io("open", path)(error),
    })
}

fn is_only_build(header: &Header, build: Uuid) -> bool {
    header.build == build && header.records.iter().all(|record| record.is_zero() || record.build == build)
}

/// The length of a file, in bytes, which must be a regular one.
///
/// # Errors
/// `invalid` when it is a directory or a device.
pub fn regular_length(file: &File, path: &Path) -> Result<u64, Error> {
    let metadata = file.metadata().map_err(Error::io("examine", path))?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(Error::io("use", path)(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
    }
}
