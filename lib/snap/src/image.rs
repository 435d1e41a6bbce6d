//! A memory image to read from: a snapshot directory or a raw file, as runs of zeros and of mapped data.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use sys::mapping::Mapping;
use uuid::Uuid;

use crate::Error;
use crate::directory;
use crate::header::{self, Header, Record};
use crate::spans::{Source, Span, Spans};
use crate::sums::Sums;

/// A memory image, opened. Reading copies nothing and locks nothing; it may be shared between threads.
#[derive(Debug)]
pub struct Image {
    /// Of the header; a raw file has none.
    build: Option<Uuid>,
    size: u64,
    block_size: u64,
    /// Each is a maximal run; together they cover `0..size`. The build is that of `files[file]`.
    runs: Vec<Run>,
    /// Memory in equal buckets, about as many as runs: the run that holds the beginning of each. A search looks only
    /// between two of them.
    buckets: Vec<u32>,
    /// Memory's bucket `n` begins at `n << bucket_bits`.
    bucket_bits: u32,
    files: Vec<Stored>,
    /// Checksums of each of the files, where there are some.
    sums: Vec<Option<Sums>>,
}

/// A file that holds pieces of memory, and what it is.
#[derive(Debug)]
struct Stored {
    bytes: Mapping,
    path: PathBuf,
    build: Option<Uuid>,
}

/// Where a piece of memory is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The build whose diff that is; none of a raw file.
    pub build: Option<Uuid>,
    /// Offset into it, in bytes.
    pub offset: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    offset: u64,
    storage_offset: u64,
    /// Index into the files, or [`ZERO`].
    file: u32,
}

const ZERO: u32 = u32::MAX;

/// A maximal run of memory whose bytes lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent<'a> {
    /// Offset into the memory image, in bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// What is there.
    pub content: Content<'a>,
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Nothing is stored: it reads as zeros.
    Zero,
    /// These bytes, as many as the extent is long.
    Data(&'a [u8]),
}

/// What comparing stored bytes with their checksum found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// These offsets into memory, the one that was asked for among them, are what was stored.
    Good(Range<u64>),
    /// Nothing is known of these: they are zeros, or have no checksum.
    Unknown(Range<u64>),
    /// These are not what was stored.
    Wrong(Range<u64>),
}

impl Checked {
    /// The offsets into memory that it is about.
    pub fn range(&self) -> &Range<u64> {
        let (Self::Good(range) | Self::Unknown(range) | Self::Wrong(range)) = self;
        range
    }
}

impl Extent<'_> {
    /// Where it ends in memory.
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
}

impl Image {
    /// Opens a snapshot directory. Each diff file is checked to be as long as the header needs.
    ///
    /// # Errors
    /// `not_found` when there is no snapshot, `corrupt` when the header or a diff file is damaged or missing.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let header = directory::read_header(dir)?;
        Self::with_header(dir, &header)
    }

    /// Opens the diff files in `dir` under a header already read.
    ///
    /// # Errors
    /// `corrupt` when a diff file is missing or too short.
    pub fn with_header(dir: &Path, header: &Header) -> Result<Self, Error> {
        let diffs = directory::open_diffs(dir, header)?;
        let files = diffs.iter().map(|diff| {
            let bytes = Mapping::of(&diff.file).map_err(Error::io("map", &diff.path))?;
            Ok(Stored { bytes, path: diff.path.clone(), build: Some(diff.build) })
        });
        let files = files.collect::<Result<Vec<_>, Error>>()?;
        let mut merged = Vec::with_capacity(header.records.len());
        header.records.iter().for_each(|record| header::push(&mut merged, *record));
        let run = |record: &Record| Run {
            offset: record.offset,
            storage_offset: record.storage_offset,
            file: diffs.iter().position(|diff| diff.build == record.build).map_or(ZERO, |index| index as u32),
        };
        let runs = merged.iter().map(run).collect();
        let sums = vec![None; files.len()];
        Ok(Self { sums, build: Some(header.build), ..Self::new(header.size, header.block_size, runs, files) })
    }

    /// Opens a snapshot directory with its checksums, as far as it has some, for [`Image::check_run`]: 24 bytes for each
    /// 256 KiB that are stored together, at least one for each record.
    ///
    /// # Errors
    /// As [`Image::open`]; `corrupt` when checksums are something else.
    pub fn open_checked(dir: &Path) -> Result<Self, Error> {
        let header = directory::read_header(dir)?;
        let image = Self::with_header(dir, &header)?;
        let sums = header.builds().into_iter().map(|(build, _)| Sums::open(dir, build));
        Ok(Self { sums: sums.collect::<Result<_, _>>()?, ..image })
    }

    /// Opens a raw memory file; its holes are zeros. Its block size is 4096.
    ///
    /// # Errors
    /// What opening it said; `invalid` when it is empty or not a whole number of pages.
    pub fn open_raw(path: &Path) -> Result<Self, Error> {
        // A pipe would be waited for until somebody writes into it.
        let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path);
        let file = file.map_err(Error::io("open", path))?;
        let size = directory::regular_length(&file, path)?;
        let block_size = header::BLOCK_SIZES[0];
        if size == 0 || !size.is_multiple_of(block_size) {
            return Err(Error::field(
                "raw",
                format!("{} has {size} bytes, not a positive multiple of {block_size}", path.display()),
            ));
        }
        let spans = Spans::full(&file, path, size)?.blocks(block_size);
        let run = |span: &Span| Run {
            offset: span.range.start,
            storage_offset: span.range.start,
            file: if span.source == Source::Raw { 0 } else { ZERO },
        };
        let runs = spans.iter().map(run).collect();
        let bytes = Mapping::of(&file).map_err(Error::io("map", path))?;
        let stored = Stored { bytes, path: path.to_owned(), build: None };
        Ok(Self::new(size, block_size, runs, vec![stored]))
    }

    /// An image of nothing but zeros, `size` bytes, more than none.
    pub fn zeros(size: u64) -> Self {
        let run = Run { offset: 0, storage_offset: 0, file: ZERO };
        Self::new(size, header::BLOCK_SIZES[0], vec![run], Vec::new())
    }

    fn new(size: u64, block_size: u64, runs: Vec<Run>, files: Vec<Stored>) -> Self {
        let bucket_bits = (size / runs.len() as u64).next_power_of_two().trailing_zeros();
        let starts = (0..=(size - 1) >> bucket_bits).map(|bucket| bucket << bucket_bits);
        let mut index = 0;
        let mut buckets: Vec<u32> = starts
            .map(|start| {
                while runs.get(index + 1).is_some_and(|run: &Run| run.offset <= start) {
                    index += 1;
                }
                index as u32
            })
            .collect();
        buckets.push(runs.len() as u32 - 1);
        Self { build: None, size, block_size, runs, buckets, bucket_bits, files, sums: Vec::new() }
    }

    /// The index of the run that holds `offset`.
    fn index_of(&self, offset: u64) -> usize {
        assert!(offset < self.size, "offset {offset} is past the end of memory, {}", self.size);
        let bucket = (offset >> self.bucket_bits) as usize;
        let (from, to) = (self.buckets[bucket] as usize, self.buckets[bucket + 1] as usize);
        from + self.runs[from..=to].partition_point(|run| run.offset <= offset) - 1
    }

    /// The build that came with its header; `None` for a raw file.
    pub fn build(&self) -> Option<Uuid> {
        self.build
    }

    /// Bytes of memory.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a block: every extent begins and ends on a multiple of it.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// The maximal run that holds `offset`: a binary search, without allocation.
    ///
    /// # Panics
    /// When `offset` is not below [`Image::size`].
    pub fn extent_at(&self, offset: u64) -> Extent<'_> {
        self.extent(self.index_of(offset))
    }

    /// Where the bytes at `offset` are stored. `None` where they are zeros.
    ///
    /// # Panics
    /// When `offset` is not below [`Image::size`].
    pub fn place_of(&self, offset: u64) -> Option<Place> {
        let run = self.runs[self.index_of(offset)];
        let Stored { path, build, .. } = self.files.get(run.file as usize)?;
        let offset = run.storage_offset + (offset - run.offset);
        Some(Place { path: path.clone(), build: *build, offset })
    }

    /// The extent after the one that holds `offset`; `None` after the last.
    pub fn next_extent(&self, offset: u64) -> Option<Extent<'_>> {
        let index = if offset < self.size { self.index_of(offset) + 1 } else { self.runs.len() };
        (index < self.runs.len()).then(|| self.extent(index))
    }

    /// All extents in address order.
    pub fn extents(&self) -> impl ExactSizeIterator<Item = Extent<'_>> {
        (0..self.runs.len()).map(|index| self.extent(index))
    }

    fn extent(&self, index: usize) -> Extent<'_> {
        let Run { offset, storage_offset, file } = self.runs[index];
        let end = self.runs.get(index + 1).map_or(self.size, |next| next.offset);
        let length = end - offset;
        let content = match self.files.get(file as usize) {
            None => Content::Zero,
            Some(file) => Content::Data(&file.bytes[storage_offset as usize..][..length as usize]),
        };
        Extent { offset, length, content }
    }

    /// Compares the bytes under the checksum that covers `offset` with it: at most 256 KiB, 2 MiB of huge blocks. Who loads
    /// an image run by run calls it for the beginning of each, and for the end of what it says, until the run is through;
    /// nothing is kept, and nothing allocated but in `scratch`, once. What cannot be read, because the file was cut short or
    /// its disk fails, is wrong too. Only for an image that was opened with [`Image::open_checked`].
    ///
    /// # Panics
    /// When `offset` is not below [`Image::size`].
    pub fn check_run(&self, offset: u64, scratch: &mut Vec<u8>) -> Checked {
        let extent = self.extent_at(offset);
        let run = self.runs[self.index_of(offset)];
        let sums = self.sums.get(run.file as usize).and_then(Option::as_ref);
        let stored = run.storage_offset + (offset - extent.offset);
        let Some(sum) = sums.and_then(|sums| sums.covering(stored)) else {
            return Checked::Unknown(offset..extent.end());
        };
        // The part of it that this run still has; an image on top of the one that it was taken for may have less.
        let memory = |at: u64| (at + extent.offset).saturating_sub(run.storage_offset);
        let range = memory(sum.range.start).max(extent.offset)..memory(sum.range.end).min(extent.end());
        let bytes = self.files[run.file as usize].bytes.get(sum.range.start as usize..sum.range.end as usize);
        let is_good = bytes.is_some_and(|bytes| {
            scratch.resize(bytes.len(), 0);
            sys::mapping::copy(bytes, scratch).is_ok() && sum.is_of(scratch)
        });
        if is_good { Checked::Good(range) } else { Checked::Wrong(range) }
    }

    /// Whether it was opened with [`Image::open_checked`], and some of it has a checksum.
    pub fn is_checked(&self) -> bool {
        self.sums.iter().any(Option::is_some)
    }

    /// The bytes of `start..end` as pieces, in order.
    pub fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = Extent<'_>> {
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let extent = self.extent_at(at);
            let stop = extent.end().min(end);
            let content = match extent.content {
                Content::Zero => Content::Zero,
                Content::Data(bytes) => {
                    Content::Data(&bytes[(at - extent.offset) as usize..(stop - extent.offset) as usize])
                }
            };
            let piece = Extent { offset: at, length: stop - at, content };
            at = stop;
            Some(piece)
        })
    }
}

#[cfg(test)]
#[path = "tests/image.rs"]
mod tests;
