//! A snapshot directory: the names in it, and how they are read.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::header::Header;
use crate::{Error, WorkingSet, workingset};

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

/// The build of a snapshot's header, of which no more is read: 64 bytes. `None` when there is none of a version that is
/// known.
pub fn read_build(dir: &Path) -> Option<Uuid> {
    let mut begin = [0; 64];
    File::open(header_path(dir)).and_then(|mut file| file.read_exact(&mut begin)).ok()?;
    let build = Uuid::from_slice(&begin[32..48]).ok()?;
    (begin[..8] == 1u64.to_le_bytes()).then_some(build)
}

/// A diff file, opened.
#[derive(Debug)]
pub struct Diff {
    /// Its build.
    pub build: Uuid,
    /// Its path.
    pub path: PathBuf,
    /// Open for reading.
    pub file: File,
}

/// Opens every diff file that the header of `dir` refers to. Each is checked to be as long as the header needs.
///
/// # Errors
/// `corrupt` when one is missing or too short.
pub fn open_diffs(dir: &Path, header: &Header) -> Result<Vec<Diff>, Error> {
    let open = |(build, wanted)| {
        let diff = open_diff(dir, header, build)?;
        match regular_length(&diff.file, &diff.path)? {
            bytes if bytes < wanted => Err(Error::DiffShort { path: diff.path, bytes, wanted }),
            _ => Ok(diff),
        }
    };
    header.builds().into_iter().map(open).collect()
}

/// Opens the diff file of a build that the header of `dir` refers to. Old snapshots, which have one build, call it
/// `memfile`, Cloud Hypervisor `memory-ranges`.
///
/// # Errors
/// `corrupt` when there is none.
pub fn open_diff(dir: &Path, header: &Header, build: Uuid) -> Result<Diff, Error> {
    let path = diff_path(dir, build);
    let opened = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_only_build(header, build) => {
            let opened = plain_paths(dir).find_map(|plain| Some((File::open(&plain).ok()?, plain)));
            opened.map(|(file, plain)| (plain, file)).ok_or(error)
        }
        opened => opened.map(|file| (path.clone(), file)),
    };
    match opened {
        Ok((path, file)) => Ok(Diff { build, path, file }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::DiffMissing { path, header: header_path(dir) })
        }
        Err(error) => Err(Error::io("open", path)(error)),
    }
}

/// Where the memory lies as one plain file, if it does.
pub fn plain_paths(dir: &Path) -> impl Iterator<Item = PathBuf> {
    [PLAIN, RANGES].map(|name| dir.join(name)).into_iter()
}

/// The working set of the image with this header, if there is one that can be used: without it nothing is wrong.
pub fn working_set(dir: &Path, header: &Header) -> Option<WorkingSet> {
    WorkingSet::read_for(dir, header.build).inspect_err(|what| log::warn!("{what}")).ok().flatten()
}

/// The builds that memory comes from, the oldest first: the base, those between by the age of their files (the format does
/// not say), the snapshot's own.
pub fn builds_by_age(dir: &Path, header: &Header) -> Vec<Uuid> {
    let age = |build: &Uuid| {
        let written = fs::metadata(diff_path(dir, *build)).and_then(|file| file.modified()).ok();
        (*build == header.build, *build != header.base_build, written)
    };
    let mut builds: Vec<_> = header.builds().into_iter().map(|(build, _)| build).collect();
    builds.sort_by_cached_key(age);
    builds
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

/// Cloud Hypervisor's own memory file, which has no header.
pub const RANGES: &str = "memory-ranges";

/// Names of a VMM's state and of a disk, beside the memory.
const STATE: [&str; 9] = [
    "snapfile",
    "wrenn-vmm.state",
    "state.json",
    "config.json",
    RANGES,
    "rootfs.cow",
    "rootfs.meta",
    "rootfs.ext4",
    "meta.json",
];

/// Whether this is the name of a VMM's state, a disk or a description.
pub fn is_state(name: &str) -> bool {
    STATE.contains(&name)
}

/// Whether a file of that name is JSON.
pub fn is_json(name: &str) -> bool {
    name.ends_with(".json") || name == "rootfs.meta"
}

/// Whether a snapshot's directory may hold a file of that name: memory, state, disk, the page server's recording, or what
/// a program that was killed has left of them.
pub fn is_own(name: &str) -> bool {
    let unfinished = wire::parse_partial(name).is_some() || (name.starts_with('.') && name.ends_with(".tmp"));
    is_memory(name) || is_state(name) || name == workingset::FILE || unfinished
}

/// Whether a file of that name holds memory, or tells where it is or what its checksums are.
pub fn is_memory(name: &str) -> bool {
    name == PLAIN || name.starts_with("memfile.")
}

/// The names in a directory, sorted.
///
/// # Errors
/// What reading it said.
pub fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(Error::io("read", dir))?;
    names.sort();
    Ok(names)
}

/// The files of each VMM's state. No VMM can load another's.
const VMMS: [(&str, &[&str]); 3] = [
    ("firecracker", &["snapfile"]),
    ("wrenn-vmm", &["wrenn-vmm.state"]),
    (CLOUD_HYPERVISOR, &["state.json", "config.json"]),
];

/// Cloud Hypervisor's name in `spec.vmm`.
pub const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";

/// The directory in which Cloud Hypervisor's `config.json` has the root disk: a restore opens it there and nowhere else.
///
/// # Errors
/// `corrupt` when it names none.
pub fn sandbox_dir(dir: &Path) -> Result<String, Error> {
    let path = dir.join("config.json");
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    let corrupt = |why: String| Error::Config { path: path.clone(), why };
    let config: wire::Value =
        serde_json::from_slice(&bytes).map_err(|error| corrupt(format!("is not JSON: {error}")))?;
    let disk = config.pointer("/disks/0/path").and_then(wire::Value::as_str);
    match disk.and_then(|disk| disk.rsplit_once('/')) {
        Some((place, _)) if !place.is_empty() => Ok(place.to_owned()),
        _ => Err(corrupt("names no file for the root disk".into())),
    }
}

/// Whose state lies among these files, and its names.
pub fn vmm(names: &[String]) -> Option<(&'static str, &'static [&'static str])> {
    VMMS.into_iter().find(|(_, state)| state.iter().all(|file| names.iter().any(|name| name == file)))
}
