//! Checksums of a diff file, `memfile.<build>.sum`: what `verify` holds the stored bytes against.
//!
//! Little-endian: u64 version = 1, 16-byte build id; then 24-byte entries in the order of their offsets: u64 offset into
//! the diff file, u64 length, u32 CRC-32 (IEEE, as in zlib) of these bytes, u32 zero. Together the entries are what was
//! stored; between them a file that was packed in place has holes. Snapshots of the original have no such file.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::Undo;

use crate::header::Record;
use crate::{Error, directory, place};

const FIXED: usize = 24;
const ENTRY: usize = 24;

/// The checksum of one range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// Offsets into the diff file (while packing: into memory).
    pub range: Range<u64>,
    /// CRC-32 of the bytes.
    pub crc: u32,
}

impl Sum {
    /// The checksum of a range, which holds these bytes.
    pub fn of(range: Range<u64>, bytes: &[u8]) -> Self {
        Self { range, crc: crc32fast::hash(bytes) }
    }
}

/// Where a build's checksums lie.
pub fn path(dir: &Path, build: Uuid) -> PathBuf {
    dir.join(format!("memfile.{build}.sum"))
}

/// Checksums taken of memory, as those of a diff file: `records` say where `build` has that memory.
pub fn in_storage(sums: Vec<Sum>, records: &[Record], build: Uuid) -> Vec<Sum> {
    let own: Vec<_> = records.iter().filter(|record| record.build == build).collect();
    let place = |Sum { range, crc }: Sum| {
        let record = own[own.partition_point(|record| record.offset <= range.start) - 1];
        let start = record.storage_offset + (range.start - record.offset);
        Sum { range: start..start + (range.end - range.start), crc }
    };
    sums.into_iter().map(place).collect()
}

fn crc_of(file: &File, range: &Range<u64>, buffer: &mut Vec<u8>) -> io::Result<u32> {
    buffer.resize((range.end - range.start) as usize, 0);
    file.read_exact_at(buffer, range.start)?;
    Ok(crc32fast::hash(buffer))
}

/// Writes the checksums of a build.
///
/// # Errors
/// `conflict` when there are some; what the kernel said.
pub fn write(dir: &Path, build: Uuid, sums: &[Sum], undo: &mut Undo) -> Result<(), Error> {
    let mut bytes = Vec::with_capacity(FIXED + sums.len() * ENTRY);
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend(build.as_bytes());
    for Sum { range, crc } in sums {
        bytes.extend(range.start.to_le_bytes());
        bytes.extend((range.end - range.start).to_le_bytes());
        bytes.extend(crc.to_le_bytes());
        bytes.extend([0; 4]);
    }
    place::write_new(&path(dir, build), &bytes, undo)
}

fn parse(bytes: &[u8], build: Uuid) -> Option<Vec<Sum>> {
    let (fixed, entries) = bytes.split_first_chunk::<FIXED>()?;
    let (entries, []) = entries.as_chunks::<ENTRY>() else { return None };
    if fixed[..8] != 1_u64.to_le_bytes() || fixed[8..] != *build.as_bytes() {
        return None;
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    let read = |entry: &[u8; ENTRY]| {
        let (start, length) = (number(&entry[..8]), number(&entry[8..16]));
        // No longer than a writer makes them: it is read at once.
        let length = Some(length).filter(|length| (1..=crate::header::BLOCK_SIZES[1]).contains(length))?;
        Some(Sum { range: start..start.checked_add(length)?, crc: number(&entry[16..20]) as u32 })
    };
    entries.iter().map(read).collect()
}

/// What comparing a diff file with its checksums found.
#[derive(Debug, Default)]
pub struct Compared {
    /// Bytes compared.
    pub bytes: u64,
    /// What is wrong.
    pub faults: Vec<String>,
}

/// Compares a diff file with its checksums, if it has any.
///
/// # Errors
/// `timeout` when interrupted. A file that cannot be read is a fault.
pub fn compare(dir: &Path, diff: &directory::Diff) -> Result<Compared, wire::Error> {
    let mut compared = Compared::default();
    let path = path(dir, diff.build);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                compared.faults.push(format!("{}: {error}", path.display()));
            }
            return Ok(compared);
        }
    };
    let Some(sums) = parse(&bytes, diff.build) else {
        compared.faults.push(format!("{} is no file of checksums for this build", path.display()));
        return Ok(compared);
    };
    let mut wrong: Vec<Range<u64>> = Vec::new();
    let mut buffer = Vec::new();
    for Sum { range, crc } in sums {
        wire::check_interrupt()?;
        compared.bytes += range.end - range.start;
        match (crc_of(&diff.file, &range, &mut buffer), wrong.last_mut()) {
            (Ok(found), _) if found == crc => {}
            (_, Some(last)) if last.end == range.start => last.end = range.end,
            _ => wrong.push(range),
        }
    }
    let fault = |range: Range<u64>| {
        format!("{}: bytes {} to {} are not what was stored", diff.path.display(), range.start, range.end)
    };
    compared.faults.extend(wrong.into_iter().map(fault));
    Ok(compared)
}

#[cfg(test)]
#[path = "tests/sums.rs"]
mod tests;
