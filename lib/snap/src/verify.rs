//! `wrenn-snap verify`: is everything there that a snapshot needs, and is it what it was?

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Verb, json};

use crate::directory::Diff;
use crate::header::Header;
use crate::{Error, WorkingSet, directory, sums, workingset};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[Field::need("dir", Type::Path, "the snapshot's directory")],
    reply: &[Field::need(
        "verified",
        Type::Object,
        "what was looked at: {files, records, bytes, checksummed bytes}",
    )],
    example: "wrenn-snap verify dir=/tmp/snapshot",
    ..Verb::new("verify", "check a snapshot's structure, sizes and checksums; every fault is named", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let dir: PathBuf = call.fields().need("dir")?;
    let found = examine(&dir)?;
    if !found.faults.is_empty() {
        // One line for each fault, beside all of them in the message.
        let faults = found.faults.clone();
        let error = wire::Error::from(Error::Faults { dir, faults: found.faults });
        return Err(faults.into_iter().fold(error, wire::Error::detail));
    }
    call.answer(
        "verified",
        json!({"files": found.files, "records": found.records, "bytes": found.bytes,
                                  "checksummed": found.checksummed}),
    );
    Ok(Reply::Document)
}

/// What a look at a snapshot found.
#[derive(Debug, Default)]
pub struct Found {
    /// Everything that is wrong.
    pub faults: Vec<String>,
    /// Files looked at.
    pub files: u64,
    /// Records of the header.
    pub records: u64,
    /// Bytes of the diff files.
    pub bytes: u64,
    /// Bytes that were compared with their checksums.
    pub checksummed: u64,
}

/// Looks at everything in a snapshot's directory, past any fault.
///
/// # Errors
/// What reading the directory said. A fault is no error here.
pub fn examine(dir: &Path) -> Result<Found, wire::Error> {
    let names = directory::names(dir)?;
    let mut found = Found::default();
    match names.iter().any(|name| name == directory::HEADER) {
        true => memory(dir, &mut found)?,
        // Cloud Hypervisor's own form has no header.
        false if names.iter().any(|name| name == directory::RANGES) => {}
        false => found.faults.push(format!("{} is missing", directory::HEADER)),
    }
    if names.iter().any(|name| name == workingset::FILE) {
        found.files += 1;
        found.faults.extend(WorkingSet::read(dir).err());
    }
    for name in names.iter().filter(|name| directory::is_state(name)) {
        found.files += 1;
        found.faults.extend(state(&dir.join(name), name));
    }
    for (one, other) in
        [("state.json", "config.json"), ("config.json", "state.json"), ("rootfs.cow", "rootfs.meta")]
    {
        let has = |wanted: &str| names.iter().any(|name| name == wanted);
        if has(one) && !has(other) {
            found.faults.push(format!("{other} is missing, and {one} needs it"));
        }
    }
    Ok(found)
}

fn memory(dir: &Path, found: &mut Found) -> Result<(), wire::Error> {
    let path = directory::header_path(dir);
    found.files += 1;
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            found.faults.push(format!("{}: {error}", directory::HEADER));
            return Ok(());
        }
    };
    let (header, faults) = Header::examine(&bytes);
    found.faults.extend(faults.iter().map(|fault| format!("{}: {fault}", directory::HEADER)));
    let Some(header) = header else { return Ok(()) };
    found.records = header.records.len() as u64;
    let progress = wire::Progress::bytes("verifying", None);
    for (build, wanted) in header.builds() {
        wire::check_interrupt()?;
        found.files += 1;
        match diff(dir, &header, build, wanted) {
            Ok((diff, bytes)) => {
                found.bytes += bytes;
                let compared = sums::compare(dir, &diff, &header.records, &progress)?;
                found.checksummed += compared.bytes;
                found.faults.extend(compared.faults);
            }
            Err(error) => found.faults.push(fault_of(error)),
        }
    }
    Ok(())
}

/// Opens one diff file and checks its length.
fn diff(dir: &Path, header: &Header, build: Uuid, wanted: u64) -> Result<(Diff, u64), Error> {
    let diff = directory::open_diff(dir, header, build)?;
    match directory::regular_length(&diff.file, &diff.path)? {
        bytes if bytes < wanted => Err(Error::DiffShort { path: diff.path, bytes, wanted }),
        bytes => Ok((diff, bytes)),
    }
}

/// An error with its cause, as one fault.
pub(crate) fn fault_of(error: Error) -> String {
    match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Checks a file of the VMM's state or the disk.
fn state(path: &Path, name: &str) -> Option<String> {
    let file = match File::open(path).map_err(Error::io("open", path)) {
        Ok(file) => file,
        Err(error) => return Some(fault_of(error)),
    };
    match directory::regular_length(&file, path) {
        Err(error) => Some(fault_of(error)),
        Ok(0) => Some(format!("{name} is empty")),
        Ok(_) if directory::is_json(name) => {
            let parsed = serde_json::from_reader::<_, wire::Value>(std::io::BufReader::new(file));
            parsed.err().map(|error| format!("{name} is not JSON: {error}"))
        }
        Ok(_) => None,
    }
}
