//! Checksums of a diff file, `memfile.<build>.sum`: what stored bytes are held against by `verify`, and by who loads them.
//!
//! Little-endian: u64 version = 1, 16-byte build id; then 24-byte entries in the order of their offsets: u64 offset into
//! the diff file, u64 length, u32 CRC-32 (IEEE, as in zlib) of these bytes, u32 zero. Together the entries are what was
//! stored; between them a file that was packed in place has holes. Snapshots of the original have no such file.
//!
//! CRC-32 finds every run of up to 32 flipped bits and all but 1 in 4 billion other changes; processors with carry-less
//! multiplication compute it at memory's speed, and any language has it. It is against disks, not against people.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::Undo;

use crate::header::{BLOCK_SIZES, Record};
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

    /// Whether these are the bytes.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        crc32fast::hash(bytes) == self.crc
    }
}

/// The checksums of a diff file, in the order of their offsets, without overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums(Vec<Sum>);

impl Sums {
    /// Reads the checksums of `build`. `None` when the bytes are something else.
    pub fn parse(bytes: &[u8], build: Uuid) -> Option<Self> {
        let (fixed, entries) = bytes.split_first_chunk::<FIXED>()?;
        let (entries, []) = entries.as_chunks::<ENTRY>() else { return None };
        if fixed[..8] != 1_u64.to_le_bytes() || fixed[8..] != *build.as_bytes() {
            return None;
        }
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let mut end = 0;
        let read = |entry: &[u8; ENTRY]| {
            let (start, length) = (number(&entry[..8]), number(&entry[8..16]));
            // No longer than a writer makes them: it is read at once.
            let length = Some(length).filter(|length| (1..=BLOCK_SIZES[1]).contains(length))?;
            let range = Some(start).filter(|start| *start >= end)?..start.checked_add(length)?;
            end = range.end;
            (entry[20..] == [0; 4]).then(|| Sum { range, crc: number(&entry[16..20]) as u32 })
        };
        entries.iter().map(read).collect::<Option<_>>().map(Self)
    }

    /// The bytes of the checksums of `build`.
    pub fn to_bytes(&self, build: Uuid) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.0.len() * ENTRY);
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(build.as_bytes());
        for Sum { range, crc } in &self.0 {
            bytes.extend(range.start.to_le_bytes());
            bytes.extend((range.end - range.start).to_le_bytes());
            bytes.extend(crc.to_le_bytes());
            bytes.extend([0; 4]);
        }
        bytes
    }

    /// Checksums taken of memory, in its order, as those of a diff file: `records` say where `build` has that memory.
    pub fn in_storage(sums: Vec<Sum>, records: &[Record], build: Uuid) -> Self {
        let mut own = records.iter().filter(|record| record.build == build).peekable();
        let place = |Sum { range, crc }: Sum| {
            while own.next_if(|record| record.end() <= range.start).is_some() {}
            // Everything that is stored has a record.
            let record = own.peek().map_or((0, 0), |record| (record.offset, record.storage_offset));
            let start = range.start - record.0 + record.1;
            Sum { range: start..start + (range.end - range.start), crc }
        };
        Self(sums.into_iter().map(place).collect())
    }

    /// Reads the checksums of a build. `None` when there are none.
    ///
    /// # Errors
    /// `corrupt` when they are something else; what the kernel said.
    pub fn open(dir: &Path, build: Uuid) -> Result<Option<Self>, Error> {
        let path = path(dir, build);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes, build).map(Some).ok_or(Error::Sums { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    }

    /// The checksum that covers the byte at `offset` of the diff file.
    pub fn covering(&self, offset: u64) -> Option<&Sum> {
        let next = self.0.partition_point(|sum| sum.range.start <= offset);
        self.0[..next].last().filter(|sum| offset < sum.range.end)
    }

    /// The parts of a range of the diff file that no checksum covers.
    fn uncovered(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        let first = self.0.partition_point(|sum| sum.range.end <= at);
        for sum in self.0[first..].iter().take_while(|sum| sum.range.start < range.end) {
            if at < sum.range.start {
                gaps.push(at..sum.range.start);
            }
            at = sum.range.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }
}

/// Where a build's checksums lie.
pub fn path(dir: &Path, build: Uuid) -> PathBuf {
    dir.join(format!("memfile.{build}.sum"))
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
pub fn write(dir: &Path, build: Uuid, sums: &Sums, undo: &mut Undo) -> Result<(), Error> {
    place::write_new(&path(dir, build), &sums.to_bytes(build), undo)
}

/// What comparing a diff file with its checksums found.
#[derive(Debug, Default)]
pub struct Compared {
    /// Bytes compared.
    pub bytes: u64,
    /// What is wrong.
    pub faults: Vec<String>,
}

/// Compares a diff file with its checksums, if it has any. `records` say what of it is referred to.
///
/// # Errors
/// `timeout` when interrupted. A file that cannot be read is a fault.
pub fn compare(
    dir: &Path,
    diff: &directory::Diff,
    records: &[Record],
    progress: &wire::Progress,
) -> Result<Compared, wire::Error> {
    let mut compared = Compared::default();
    let sums = match Sums::open(dir, diff.build) {
        Ok(Some(sums)) => sums,
        Ok(None) => return Ok(compared),
        Err(error) => {
            compared.faults.push(crate::verify::fault_of(error));
            return Ok(compared);
        }
    };
    let mut wrong: Vec<Range<u64>> = Vec::new();
    let mut buffer = Vec::new();
    for Sum { range, crc } in &sums.0 {
        wire::check_interrupt()?;
        compared.bytes += range.end - range.start;
        progress.add(range.end - range.start);
        match (crc_of(&diff.file, range, &mut buffer), wrong.last_mut()) {
            (Ok(found), _) if found == *crc => {}
            (_, Some(last)) if last.end == range.start => last.end = range.end,
            _ => wrong.push(range.clone()),
        }
    }
    let fault = |range: Range<u64>| {
        format!("{}: bytes {} to {} are not what was stored", diff.path.display(), range.start, range.end)
    };
    compared.faults.extend(wrong.into_iter().map(fault));
    let own = records.iter().filter(|record| record.build == diff.build);
    let bare =
        own.flat_map(|own| sums.uncovered(own.storage_offset..own.storage_offset.saturating_add(own.length)));
    compared.faults.extend(bare.map(|range| {
        format!("{}: no checksum covers bytes {} to {}", diff.path.display(), range.start, range.end)
    }));
    Ok(compared)
}

#[cfg(test)]
#[path = "tests/sums.rs"]
mod tests;
