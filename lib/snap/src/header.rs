//! Header v1, `memfile.header`: which stored bytes every range of a memory image is made of.
//!
//! Little-endian: u64 version = 1, u64 block_size, u64 size, u64 generation, 16-byte build id, 16-byte base build id;
//! then 40-byte records to the end of the file: u64 offset, u64 length, 16-byte build id, u64 storage_offset. A build
//! id's bytes are in their textual order; the nil id stands for zeros. The records are sorted and cover the whole size.
//! The format is the original Wrenn's and e2b's (docs/format.md).

use uuid::Uuid;

/// Block sizes a header may have, in bytes: ordinary pages and huge ones.
pub const BLOCK_SIZES: [u64; 2] = [4096, 2 << 20];
/// Bytes before the first record.
pub const FIXED: usize = 64;
/// Bytes of one record.
pub const RECORD: usize = 40;

/// What a memory image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes; every record begins and ends on a multiple of it.
    pub block_size: u64,
    /// Bytes of memory.
    pub size: u64,
    /// How many diffs lie between this image and the full one it began with.
    pub generation: u64,
    /// The diff file that came with this header.
    pub build: Uuid,
    /// The build of the full image at the beginning of the chain.
    pub base_build: Uuid,
    /// Sorted, without gaps, from 0 to `size`.
    pub records: Vec<Record>,
}

/// One range of memory and where its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Offset into the memory image, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The diff file `memfile.<build>`, or nil: zeros.
    pub build: Uuid,
    /// Offset into the diff file, in bytes. Without meaning for zeros.
    pub storage_offset: u64,
}

impl Record {
    /// Where it ends in memory.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether it is zeros, of which nothing is stored.
    pub fn is_zero(&self) -> bool {
        self.build.is_nil()
    }

    /// The part of it that lies in `start..end`, which must touch it.
    #[must_use]
    pub fn clip(&self, start: u64, end: u64) -> Self {
        let (start, end) = (start.max(self.offset), end.min(self.end()));
        let storage_offset = if self.is_zero() { 0 } else { self.storage_offset + (start - self.offset) };
        Self { offset: start, length: end - start, build: self.build, storage_offset }
    }

    /// Whether `next` goes on where this one ends, in memory and in storage.
    fn continues_with(&self, next: &Self) -> bool {
        self.build == next.build
            && self.end() == next.offset
            && (self.is_zero() || self.storage_offset + self.length == next.storage_offset)
    }
}

/// Appends a record. It grows the last one if it goes on where that one ends, in memory *and in storage*.
pub fn push(records: &mut Vec<Record>, record: Record) {
    match records.last_mut() {
        Some(last) if last.continues_with(&record) => last.length += record.length,
        _ if record.length == 0 => {}
        _ => records.push(record),
    }
}

/// What can be wrong with a header's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Cut off before the first record.
    #[error("the header is truncated: {0} bytes, at least {FIXED} wanted")]
    Truncated(usize),
    /// Another format.
    #[error("header version {0}, only 1 is known")]
    Version(u64),
    /// Not one of [`BLOCK_SIZES`].
    #[error("block size {0}, only 4096 and 2097152 are known")]
    BlockSize(u64),
    /// No memory, or not a whole number of blocks.
    #[error("size {size} is not a positive multiple of the block size {block_size}")]
    Size {
        /// Bytes of memory.
        size: u64,
        /// Bytes of a block.
        block_size: u64,
    },
    /// The last record is cut off.
    #[error("the header is truncated: its last record has {0} of {RECORD} bytes")]
    RecordTruncated(usize),
    /// A record does not begin where the one before it ends.
    #[error("record {index} begins at {offset}, the one before it ends at {expected}: {}", if offset > expected { "a gap" } else { "an overlap, or out of order" })]
    Order {
        /// Which record, from 0.
        index: usize,
        /// Where it begins.
        offset: u64,
        /// Where it should.
        expected: u64,
    },
    /// A record's length is 0, not a whole number of blocks, or runs past what a u64 holds.
    #[error("record {index} has length {length} at storage offset {storage_offset}")]
    Length {
        /// Which record, from 0.
        index: usize,
        /// Bytes.
        length: u64,
        /// Offset into the diff file.
        storage_offset: u64,
    },
    /// The records do not end where memory ends.
    #[error("the records end at {end}, memory at {size}")]
    Cover {
        /// Where the last record ends.
        end: u64,
        /// Bytes of memory.
        size: u64,
    },
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// The first fault.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let (header, mut faults) = Self::examine(bytes);
        match header {
            Some(header) if faults.is_empty() => Ok(header),
            _ => Err(faults.swap_remove(0)),
        }
    }

    /// Reads a header as far as it can be read, with everything that is wrong with it. There is at least one fault
    /// where there is no header.
    pub fn examine(bytes: &[u8]) -> (Option<Self>, Vec<HeaderFault>) {
        let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
            return (None, vec![HeaderFault::Truncated(bytes.len())]);
        };
        let version = u64_at(fixed, 0);
        if version != 1 {
            return (None, vec![HeaderFault::Version(version)]);
        }
        let (records, tail) = rest.as_chunks::<RECORD>();
        let header = Self {
            block_size: u64_at(fixed, 8),
            size: u64_at(fixed, 16),
            generation: u64_at(fixed, 24),
            build: uuid_at(fixed, 32),
            base_build: uuid_at(fixed, 48),
            records: records.iter().map(read_record).collect(),
        };
        let mut faults = Vec::new();
        if !BLOCK_SIZES.contains(&header.block_size) {
            // Nothing else can be judged.
            return (Some(header.clone()), vec![HeaderFault::BlockSize(header.block_size)]);
        }
        if header.size == 0 || !header.size.is_multiple_of(header.block_size) {
            faults.push(HeaderFault::Size { size: header.size, block_size: header.block_size });
        }
        if !tail.is_empty() {
            faults.push(HeaderFault::RecordTruncated(tail.len()));
        }
        header.examine_records(&mut faults);
        (Some(header), faults)
    }

    fn examine_records(&self, faults: &mut Vec<HeaderFault>) {
        let mut expected = 0;
        for (index, record) in self.records.iter().enumerate() {
            let Record { offset, length, storage_offset, .. } = *record;
            if offset != expected {
                faults.push(HeaderFault::Order { index, offset, expected });
            }
            let fits = offset.checked_add(length).is_some()
                && (record.is_zero() || storage_offset.checked_add(length).is_some());
            if length == 0 || !length.is_multiple_of(self.block_size) || !fits {
                faults.push(HeaderFault::Length { index, length, storage_offset });
            }
            expected = offset.saturating_add(length);
        }
        if expected != self.size {
            faults.push(HeaderFault::Cover { end: expected, size: self.size });
        }
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + self.records.len() * RECORD);
        for number in [1, self.block_size, self.size, self.generation] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.build.as_bytes());
        bytes.extend(self.base_build.as_bytes());
        for record in &self.records {
            bytes.extend(record.offset.to_le_bytes());
            bytes.extend(record.length.to_le_bytes());
            bytes.extend(record.build.as_bytes());
            bytes.extend(record.storage_offset.to_le_bytes());
        }
        bytes
    }

    /// Every build that the records refer to, each once, with the length its diff file must have at least.
    pub fn builds(&self) -> Vec<(Uuid, u64)> {
        let mut builds: Vec<(Uuid, u64)> = Vec::new();
        for record in self.records.iter().filter(|record| !record.is_zero()) {
            let end = record.storage_offset.saturating_add(record.length);
            match builds.iter_mut().find(|(build, _)| *build == record.build) {
                Some((_, length)) => *length = end.max(*length),
                None => builds.push((record.build, end)),
            }
        }
        builds
    }

    /// The index of the record that holds `offset`, which must be below `size`.
    pub fn index_of(&self, offset: u64) -> usize {
        self.records.partition_point(|record| record.offset <= offset) - 1
    }

    /// The records, clipped, that make up `start..end`.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = Record> + '_ {
        let from = if start < end { self.index_of(start) } else { self.records.len() };
        self.records[from..]
            .iter()
            .take_while(move |record| record.offset < end)
            .map(move |record| record.clip(start, end))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Uuid::from_bytes(id)
}

fn read_record(bytes: &[u8; RECORD]) -> Record {
    Record {
        offset: u64_at(bytes, 0),
        length: u64_at(bytes, 8),
        build: uuid_at(bytes, 16),
        storage_offset: u64_at(bytes, 32),
    }
}

#[cfg(test)]
#[path = "tests/header.rs"]
mod tests;
