//! Reading a raw memory file once, in parallel, to find out which of its blocks must be stored.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::spans::{Source, Span, Spans};
use crate::sums::Sum;
use crate::{Content, Error, Image, place};

/// How much is read at a time: it stays in a core's cache between reading and testing.
const CHUNK: u64 = 256 << 10;
/// How much of a block is looked at first, where most blocks are expected not to be zeros.
const PROBE: usize = 256;
/// A thread is worth starting for this much to read.
const THREAD_WORTH: u64 = 16 << 20;
/// More threads than this only wait for memory.
const MAX_THREADS: usize = 4;

/// What becomes of a run of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its bytes go into the new diff file.
    Stored,
    /// It is zeros.
    Zero,
    /// It stays as the parent has it.
    Inherited,
}

/// A run of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Offsets into memory.
    pub range: Range<u64>,
    /// What becomes of it.
    pub fate: Fate,
    /// Whether the raw file has data there.
    pub data: bool,
}

impl Run {
    /// Bytes.
    pub fn length(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<128>();
    let chunk_is_zero = |chunk: &[u8; 128]| {
        let (words, _) = chunk.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    };
    chunks.iter().all(chunk_is_zero) && rest.iter().all(|byte| *byte == 0)
}

/// One scan: what to read, and what to compare with.
#[derive(Debug)]
pub struct Scan<'a> {
    /// The raw memory file.
    pub raw: &'a File,
    /// Its path, for errors.
    pub path: &'a Path,
    /// Where its data is.
    pub spans: &'a Spans,
    /// Bytes of a block.
    pub block_size: u64,
    /// The parent, where there is one.
    pub parent: Option<&'a Image>,
    /// Whether to take checksums of what is stored, for which it must be read whole. Otherwise most data is expected to be
    /// other than the parent's, as in a diff, and a block's beginning tells.
    pub sums: bool,
    /// The raw file, to be written to, if its zeros may become holes as they are found.
    pub punch: Option<&'a File>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Runs in order, from 0 to the end of memory, adjacent ones unlike.
    pub runs: Vec<Run>,
    /// Checksums of all that is stored, in order, by offset into memory; none if none were wanted.
    pub sums: Vec<Sum>,
}

impl Scan<'_> {
    /// Reads what must be read.
    ///
    /// # Errors
    /// What reading said; `timeout` when interrupted.
    pub fn run(&self) -> Result<Scanned, wire::Error> {
        let units = self.units();
        let to_read: u64 = units.iter().filter(|unit| self.reads(unit)).map(|unit| length(&unit.range)).sum();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let threads = threads.min((to_read / THREAD_WORTH) as usize).max(1);

        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let work = || self.work(&units, &next, &failed);
        let parts = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    let interest = wire::Interest::of_this_thread();
                    scope.spawn(|| interest.carry(work))
                })
                .collect();
            let mut parts = vec![work()];
            parts.extend(others.into_iter().map(|thread| match thread.join() {
                Ok(part) => part,
                Err(panic) => std::panic::resume_unwind(panic),
            }));
            parts
        });
        let mut found = Scanned::default();
        for part in parts {
            let part = part?;
            found.runs.extend(part.runs);
            found.sums.extend(part.sums);
        }
        found.runs.sort_unstable_by_key(|run| run.range.start);
        found.sums.sort_unstable_by_key(|sum| sum.range.start);
        Ok(Scanned { runs: merge(found.runs), sums: found.sums })
    }

    fn reads(&self, unit: &Span) -> bool {
        matches!(unit.source, Source::Raw | Source::Mixed)
    }

    /// The spans, cut to what is read at a time.
    fn units(&self) -> Vec<Span> {
        let step = CHUNK.max(self.block_size);
        let mut units = Vec::new();
        for span in self.spans.blocks(self.block_size) {
            let step = match span.source {
                Source::Raw => step,
                Source::Mixed => self.block_size,
                Source::Zero | Source::Parent => length(&span.range),
            };
            let mut start = span.range.start;
            while start < span.range.end {
                let end = span.range.end.min(start + step);
                units.push(Span { range: start..end, source: span.source });
                start = end;
            }
        }
        units
    }

    fn work(&self, units: &[Span], next: &AtomicUsize, failed: &AtomicBool) -> Result<Scanned, wire::Error> {
        let mut found = Scanned::default();
        let mut buffer = Vec::new();
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let done = self.unit(unit, &mut buffer, &mut found);
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            done?;
        }
        Ok(found)
    }

    fn unit(&self, unit: &Span, buffer: &mut Vec<u8>, found: &mut Scanned) -> Result<(), wire::Error> {
        let range = unit.range.clone();
        let runs = &mut found.runs;
        match unit.source {
            Source::Zero => runs.push(Run { range, fate: Fate::Zero, data: false }),
            Source::Parent => runs.push(Run { range, fate: Fate::Inherited, data: false }),
            Source::Raw if self.parent.is_some() && !self.sums => self.probe(range, buffer, runs)?,
            Source::Raw | Source::Mixed => {
                wire::check_interrupt()?;
                buffer.resize(length(&range) as usize, 0);
                self.raw.read_exact_at(buffer, range.start).map_err(Error::io("read", self.path))?;
                if unit.source == Source::Mixed {
                    self.fill_from_parent(&range, buffer);
                }
                let mut blocks = Vec::new();
                for (block, start) in buffer
                    .chunks(self.block_size as usize)
                    .zip((range.start..).step_by(self.block_size as usize))
                {
                    let range = start..start + self.block_size;
                    push(&mut blocks, Run { range, fate: self.fate(start, block), data: true });
                }
                if self.sums {
                    let stored = blocks.iter().filter(|run| run.fate == Fate::Stored);
                    found.sums.extend(stored.map(|run| Sum::of(run.range.clone(), range.start, buffer)));
                }
                if let Some(file) = self.punch {
                    let mut zeros = blocks.iter().filter(|run| run.fate == Fate::Zero);
                    zeros
                        .try_for_each(|run| place::punch(file, run.range.clone()))
                        .map_err(Error::io("make holes in", self.path))?;
                }
                runs.append(&mut blocks);
            }
        }
        Ok(())
    }

    /// Reads of each block only its beginning, if that is neither zeros nor the parent's.
    fn probe(&self, range: Range<u64>, buffer: &mut Vec<u8>, runs: &mut Vec<Run>) -> Result<(), wire::Error> {
        wire::check_interrupt()?;
        buffer.resize(self.block_size as usize, 0);
        for start in range.step_by(self.block_size as usize) {
            let read =
                |part: &mut [u8]| self.raw.read_exact_at(part, start).map_err(Error::io("read", self.path));
            read(&mut buffer[..PROBE])?;
            let mut fate = self.fate(start, &buffer[..PROBE]);
            if fate != Fate::Stored {
                read(buffer)?;
                fate = self.fate(start, buffer);
            }
            push(runs, Run { range: start..start + self.block_size, fate, data: true });
        }
        Ok(())
    }

    /// Puts the parent's pages into a block that has some of its own.
    fn fill_from_parent(&self, block: &Range<u64>, buffer: &mut [u8]) {
        let Some(parent) = self.parent else { return };
        for range in self.spans.inherited(block.clone()) {
            for piece in parent.pieces(range.start, range.end) {
                if let Content::Data(bytes) = piece.content {
                    buffer[(piece.offset - block.start) as usize..][..bytes.len()].copy_from_slice(bytes);
                }
            }
        }
    }

    /// What becomes of data. That it is the parent's is no rarity in a diff: KVM's dirty log counts a page as dirty that
    /// the guest has only read (x86 maps it writable at a read fault where the host's mapping allows it).
    fn fate(&self, start: u64, block: &[u8]) -> Fate {
        if is_zero(block) {
            return Fate::Zero;
        }
        match self.parent {
            Some(parent) if equals(parent, start, block) => Fate::Inherited,
            _ => Fate::Stored,
        }
    }
}

fn equals(parent: &Image, start: u64, block: &[u8]) -> bool {
    parent.pieces(start, start + block.len() as u64).all(|piece| {
        let own = &block[(piece.offset - start) as usize..][..piece.length as usize];
        match piece.content {
            Content::Data(bytes) => own == bytes,
            Content::Zero => is_zero(own),
        }
    })
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.fate == run.fate && last.data == run.data && last.range.end == run.range.start => {
            last.range.end = run.range.end;
        }
        _ => runs.push(run),
    }
}

fn merge(runs: Vec<Run>) -> Vec<Run> {
    let mut merged = Vec::with_capacity(runs.len());
    runs.into_iter().for_each(|run| push(&mut merged, run));
    merged
}

#[cfg(test)]
#[path = "tests/scan.rs"]
mod tests;
