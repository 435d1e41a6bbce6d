//! What is known about a raw memory file before any of it is read: where its data is.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use crate::{Error, Ranges};

/// A VMM writes memory in pages: a page that is partly data is data.
pub const PAGE: u64 = 4096;

/// Where the bytes of a range come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The raw file has data there.
    Raw,
    /// Zeros: a hole of a full file, or discarded.
    Zero,
    /// A hole of a diff: what the parent has.
    Parent,
    /// A block of several pages, some of them the parent's and some not.
    Mixed,
}

impl Source {
    /// What a block is when some pages of it come from here and some from there. Zeros beside data need no care: the
    /// raw file's holes read as zeros.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            _ if self == other => self,
            (Self::Raw, Self::Zero) | (Self::Zero, Self::Raw) => Self::Raw,
            _ => Self::Mixed,
        }
    }
}

/// A range of memory, in bytes, of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Offsets into memory.
    pub range: Range<u64>,
    /// Where its bytes come from.
    pub source: Source,
}

impl Span {
    /// Bytes.
    pub fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether its data must be read.
    pub fn is_read(&self) -> bool {
        matches!(self.source, Source::Raw | Source::Mixed)
    }
}

/// A raw file's spans, in order, from 0 to its size, in pages.
#[derive(Debug, Default)]
pub struct Spans(Vec<Span>);

impl Spans {
    /// The spans of a full memory file: its holes are zeros.
    ///
    /// # Errors
    /// What finding its data said.
    pub fn full(raw: &File, path: &Path, size: u64) -> Result<Self, Error> {
        // Walking over all of a file that has none takes as long as reading a tenth of it.
        let allocated = raw.metadata().map_err(Error::io("examine", path))?.blocks() * 512;
        if allocated >= size {
            return Ok(Self::data(size));
        }
        Self::of(raw, path, size, |spans, hole| spans.push(hole, Source::Zero))
    }

    /// The spans of a diff: its holes are the parent's, except where memory was discarded.
    ///
    /// # Errors
    /// `unsupported` where the file system does not report holes page by page; what finding its data said.
    pub fn diff(raw: &File, path: &Path, size: u64, removed: &Ranges) -> Result<Self, Error> {
        let spans = Self::of(raw, path, size, |spans, hole| {
            let mut at = hole.start;
            for zero in removed.clipped(hole.clone()) {
                spans.push(at..zero.start, Source::Parent);
                at = zero.end;
                spans.push(zero, Source::Zero);
            }
            spans.push(at..hole.end, Source::Parent);
        })?;
        spans.check_holes(raw, path)?;
        Ok(spans)
    }

    /// The spans of memory of which nothing is known: all of it is data.
    pub fn data(size: u64) -> Self {
        let mut spans = Self::default();
        spans.push(0..size, Source::Raw);
        spans
    }

    /// The spans of memory of which all is known: ranges that follow each other, from 0 on.
    pub fn known(ranges: impl Iterator<Item = (Range<u64>, Source)>) -> Self {
        let mut spans = Self::default();
        ranges.for_each(|(range, source)| spans.push(range, source));
        spans
    }

    fn of(raw: &File, path: &Path, size: u64, hole: impl Fn(&mut Self, Range<u64>)) -> Result<Self, Error> {
        let mut spans = Self::default();
        let mut end = 0;
        for data in sys::sparse::data(raw) {
            let data = data.map_err(Error::io("find the data of", path))?;
            let start = (data.start / PAGE * PAGE).max(end);
            let stop = data.end.next_multiple_of(PAGE).min(size);
            hole(&mut spans, end..start);
            spans.push(start..stop, Source::Raw);
            end = stop.max(end);
        }
        hole(&mut spans, end..size);
        Ok(spans)
    }

    fn push(&mut self, range: Range<u64>, source: Source) {
        match self.0.last_mut() {
            _ if range.is_empty() => {}
            Some(last) if last.source == source => last.range.end = range.end,
            _ => self.0.push(Span { range, source }),
        }
    }

    /// Refuses a diff whose unchanged pages cannot be told from changed ones: taking them for written zeros would
    /// destroy memory.
    fn check_holes(&self, raw: &File, path: &Path) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Extents { path: path.to_owned(), why });
        let system = fstatfs(raw).map_err(|errno| Error::io("examine", path)(errno.into()))?;
        let metadata = raw.metadata().map_err(Error::io("examine", path))?;
        // tmpfs with huge pages hands out memory by the huge page and says so only here.
        let unit = match system.filesystem_type() {
            TMPFS_MAGIC => metadata.blksize(),
            _ => system.block_size() as u64,
        };
        if unit > PAGE {
            return refuse(format!(
                "its file system reports data in units of {unit} bytes, larger than a page"
            ));
        }
        let data: u64 =
            self.0.iter().filter(|s| s.source == Source::Raw).map(|s| s.range.end - s.range.start).sum();
        // One page of slack for each run of data, which was rounded to pages.
        let slack = self.0.len() as u64 * 2 * PAGE;
        if data > metadata.blocks() * 512 + slack {
            let allocated = metadata.blocks() * 512;
            return refuse(format!(
                "its file system reports {data} bytes of data where {allocated} are allocated"
            ));
        }
        Ok(())
    }

    /// The spans in whole blocks.
    pub fn blocks(&self, block_size: u64) -> Vec<Span> {
        let mut blocks = Self::default();
        // The source of the block that the last span's end cuts.
        let mut open: Option<Source> = None;
        for Span { range, source } in &self.0 {
            let mut start = range.start;
            if let Some(before) = open.take() {
                let boundary = start.next_multiple_of(block_size);
                let both = before.and(*source);
                if range.end < boundary {
                    open = Some(both);
                    continue;
                }
                blocks.push(boundary - block_size..boundary, both);
                start = boundary;
            }
            let whole = range.end / block_size * block_size;
            if start < whole {
                blocks.push(start..whole, *source);
            }
            if whole < range.end {
                open = Some(*source);
            }
        }
        blocks.0
    }

    /// The pages of `block` that are the parent's.
    pub fn inherited(&self, block: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let from = self.0.partition_point(|span| span.range.end <= block.start);
        self.0[from..]
            .iter()
            .take_while(move |span| span.range.start < block.end)
            .filter(|span| span.source == Source::Parent)
            .map(move |span| span.range.start.max(block.start)..span.range.end.min(block.end))
    }
}

/// Whether two paths name the same file.
pub fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
#[path = "tests/spans.rs"]
mod tests;
