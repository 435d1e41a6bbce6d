//! The file that holds all of a machine but its memory.
//!
//! All numbers little-endian: 8 bytes "WRENNVMM", u32 version, u32 CRC-32 of the rest, u64 length of the rest, and the
//! rest: JSON. Nothing follows. A reader refuses what it does not know, by name.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// First bytes of a state file.
const MAGIC: [u8; 8] = *b"WRENNVMM";
/// First bytes of Firecracker's.
const FIRECRACKER: u64 = 0x0710_1984_8664_0000;
/// What this program writes, and the only thing it reads. It changes whenever a field does.
pub const VERSION: u32 = 1;
/// Bytes before the JSON.
const HEAD: usize = 24;
/// Bytes at most. A machine with four vCPUs and all devices takes about a hundred thousand.
const LIMIT: u64 = 10 << 20;

/// Why a state file cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error("Cannot {what} the state file {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("The state file {} {why}", path.display())]
    Bad { path: PathBuf, why: Fault },
}

/// What is wrong with a state file.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Fault {
    #[error("is larger than {LIMIT} bytes")]
    TooLarge,
    #[error("is Firecracker's, not wrenn-vmm's")]
    Firecracker,
    #[error("is no wrenn-vmm state: it does not start with WRENNVMM")]
    Magic,
    #[error("has version {found}, this wrenn-vmm reads version {VERSION}")]
    Version { found: u32 },
    #[error("is cut short: {found} bytes of {expected}")]
    Short { found: usize, expected: u64 },
    #[error("goes on for {0} bytes after its end")]
    Long(usize),
    #[error("is damaged: its checksum is {found:08x}, it says {expected:08x}")]
    Checksum { found: u32, expected: u32 },
    #[error("holds something else than a machine's state: {0}")]
    Content(serde_json::Error),
}

/// The file's bytes.
fn encode(state: &impl Serialize) -> Result<Vec<u8>, Fault> {
    let json = serde_json::to_vec(state).map_err(Fault::Content)?;
    let mut bytes = Vec::with_capacity(HEAD + json.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(crc32fast::hash(&json).to_le_bytes());
    bytes.extend((json.len() as u64).to_le_bytes());
    bytes.extend(json);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let short = |expected: u64| Fault::Short { found: bytes.len(), expected };
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(short(HEAD as u64))?;
    if *magic != MAGIC {
        let firecracker = u64::from_le_bytes(*magic) == FIRECRACKER;
        return Err(if firecracker { Fault::Firecracker } else { Fault::Magic });
    }
    let (version, rest) = rest.split_first_chunk().ok_or(short(HEAD as u64))?;
    let found = u32::from_le_bytes(*version);
    if found != VERSION {
        return Err(Fault::Version { found });
    }
    let (checksum, rest) = rest.split_first_chunk().ok_or(short(HEAD as u64))?;
    let (length, json) = rest.split_first_chunk().ok_or(short(HEAD as u64))?;
    let (expected, length) = (u32::from_le_bytes(*checksum), u64::from_le_bytes(*length));
    if (json.len() as u64) < length {
        return Err(short(length.saturating_add(HEAD as u64)));
    }
    if json.len() as u64 > length {
        return Err(Fault::Long(json.len() - length as usize));
    }
    match crc32fast::hash(json) {
        found if found == expected => serde_json::from_slice(json).map_err(Fault::Content),
        found => Err(Fault::Checksum { found, expected }),
    }
}

/// Reads a state.
///
/// # Errors
/// What opening or reading said, or what is wrong with the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let io = |what| move |source| Error::Io { what, path: path.into(), source };
    let bad = |why| Error::Bad { path: path.into(), why };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("open"))?;
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(io("read"))?;
    if bytes.len() as u64 > LIMIT {
        return Err(bad(Fault::TooLarge));
    }
    decode(&bytes).map_err(bad)
}

/// A state file that has its place, but is not there yet.
pub struct Place {
    path: PathBuf,
    /// Its directory, open: what is synced so that the name stays.
    dir: File,
}

impl Place {
    /// Checks that there is a directory for the file.
    ///
    /// # Errors
    /// What opening the directory said.
    pub fn at(path: &Path) -> Result<Self, Error> {
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let dir = File::open(parent);
        let dir = dir.map_err(|source| Error::Io { what: "write", path: path.into(), source })?;
        Ok(Self { path: path.into(), dir })
    }

    /// Writes the state: to a file beside, which is synced and takes the name, so that the name never stands for less
    /// than a whole state.
    ///
    /// # Errors
    /// What the kernel said. What had the name before has it still, unless the last sync failed.
    pub fn write(&self, state: &impl Serialize) -> Result<(), Error> {
        let bytes = encode(state).map_err(|why| Error::Bad { path: self.path.clone(), why })?;
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let beside = self.path.with_file_name(name);
        let write = || {
            let mut file = File::create(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &self.path)
        };
        let io = |source| Error::Io { what: "write", path: self.path.clone(), source };
        write().map_err(|error| {
            let _ = fs::remove_file(&beside);
            io(error)
        })?;
        self.dir.sync_all().map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn message(bytes: &[u8]) -> String {
        decode::<Vec<u64>>(bytes).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_was_written_is_read_and_nothing_lies_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapfile");
        for state in [json!({"a": u64::MAX, "b": [1, 2]}), json!(null)] {
            Place::at(&path).unwrap().write(&state).unwrap();
            assert_eq!(read::<Value>(&path).unwrap(), state);
        }
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_cut_anywhere_says_so() {
        let bytes = encode(&[1u64, 2, 3]).unwrap();
        for cut in 0..bytes.len() {
            let said = message(&bytes[..cut]);
            assert!(said.starts_with(&format!("is cut short: {cut} bytes of ")), "{cut}: {said}");
        }
        let longer = [&bytes[..], b"xy"].concat();
        assert_eq!(message(&longer), "goes on for 2 bytes after its end");
    }

    #[test]
    fn every_changed_byte_is_noticed_and_named() {
        let bytes = encode(&[1u64, 2, 3]).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x11;
            let said = message(&bytes);
            let expected = match at {
                0..8 => "is no wrenn-vmm state",
                8..12 => "has version ",
                16..24 => "",
                _ => "is damaged: its checksum is ",
            };
            assert!(said.starts_with(expected), "{at}: {said}");
        }
    }

    #[test]
    fn a_state_of_another_program_or_version_or_of_something_else_is_named() {
        let mut bytes = FIRECRACKER.to_le_bytes().to_vec();
        bytes.extend([0; 100]);
        assert_eq!(message(&bytes), "is Firecracker's, not wrenn-vmm's");
        let mut bytes = encode(&[1u64]).unwrap();
        bytes[8] = 7;
        assert_eq!(message(&bytes), "has version 7, this wrenn-vmm reads version 1");
        let said = message(&encode(&json!({"a": 1})).unwrap());
        assert!(said.starts_with("holds something else than a machine's state: invalid type: map"), "{said}");
    }

    #[test]
    fn a_file_that_is_not_there_or_has_no_end_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapfile");
        let refused = |path: &Path| read::<Value>(path).unwrap_err().to_string();
        let missing = format!("Cannot open the state file {}: No such file", path.display());
        assert!(refused(&path).starts_with(&missing));
        assert_eq!(refused(Path::new("/dev/zero")), "The state file /dev/zero is larger than 10485760 bytes");
        let nowhere = dir.path().join("nowhere/snapfile");
        let said = Place::at(&nowhere).err().expect("there is no such directory").to_string();
        assert!(
            said.starts_with(&format!("Cannot write the state file {}: No such", nowhere.display())),
            "{said}"
        );
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("snapfile");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), "x").unwrap();
        let said = Place::at(&path).unwrap().write(&1).unwrap_err().to_string();
        assert!(said.starts_with("Cannot write the state file"), "{said}");
        assert_eq!(std::fs::read(path.join("inside")).unwrap(), b"x");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }
}
