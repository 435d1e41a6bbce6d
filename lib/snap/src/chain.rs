//! A memory image to compare with and to copy from, read through file descriptors: unlike [`crate::Image`] it takes no
//! address space, and a diff file that shrinks meanwhile is an error, not a signal.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::directory::{self, Diff};
use crate::header::{Header, Record};
use crate::{Error, plain};

/// A memory image, opened.
#[derive(Debug)]
pub struct Chain {
    /// Where every byte is.
    pub header: Header,
    diffs: Vec<Diff>,
}

impl Chain {
    /// Opens a snapshot directory. Each diff file is checked to be as long as the header needs.
    ///
    /// # Errors
    /// `not_found` when there is no snapshot, `corrupt` when the header or a diff file is damaged or missing.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::with_header(dir, directory::read_header(dir)?)
    }

    /// Opens a snapshot directory, or one in which memory lies as one plain file without a header: that is a full image too.
    ///
    /// # Errors
    /// As [`Chain::open`].
    pub fn open_any(dir: &Path, block_size: Option<u64>) -> Result<Self, Error> {
        match directory::read_header(dir) {
            Err(Error::NoSnapshot { .. }) => Self::with_header(dir, plain::header(dir, block_size)?),
            header => Self::with_header(dir, header?),
        }
    }

    fn with_header(dir: &Path, header: Header) -> Result<Self, Error> {
        let diffs = directory::open_diffs(dir, &header)?;
        Ok(Self { header, diffs })
    }

    /// The diff files it is made of.
    pub fn diffs(&self) -> &[Diff] {
        &self.diffs
    }

    /// The diff file of a record; none for zeros.
    pub fn diff(&self, record: &Record) -> Option<&Diff> {
        // A chain has few builds.
        self.diffs.iter().find(|diff| diff.build == record.build)
    }

    /// Reads memory from `start` on.
    ///
    /// # Errors
    /// What reading said.
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> Result<(), Error> {
        for record in self.header.range(start, start + buffer.len() as u64) {
            self.read_record(&record, part(buffer, start, record.offset..record.end()))?;
        }
        Ok(())
    }

    /// Reads the beginning of a record, as much as the buffer holds.
    ///
    /// # Errors
    /// What reading said.
    pub fn read_record(&self, record: &Record, buffer: &mut [u8]) -> Result<(), Error> {
        match self.diff(record) {
            None => buffer.fill(0),
            Some(diff) => diff
                .file
                .read_exact_at(buffer, record.storage_offset)
                .map_err(Error::io("read", &diff.path))?,
        }
        Ok(())
    }
}

/// The part of a buffer, which begins at `start`, that is for this range.
fn part(buffer: &mut [u8], start: u64, range: Range<u64>) -> &mut [u8] {
    &mut buffer[(range.start - start) as usize..(range.end - start) as usize]
}
