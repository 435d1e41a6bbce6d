//! Reading memory once, in parallel, to find out which of its blocks must be stored, and storing them as it goes.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;
use crate::chain::Chain;
use crate::feed::{Append, Batch, Feed, Holes, compact};
use crate::header::Record;
use crate::input::Input;
use crate::spans::{Source, Span, Spans};
use crate::sums::Sum;

/// How much of a block is compared with the parent's first, where they are expected to differ.
const PROBE: usize = 64;
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

/// What data is expected to be, compared with what the parent has there. Either way all is compared that may be equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Mostly other: a block's beginning tells, and not all of the parent's need be read.
    Other,
    /// Mostly the same.
    Same,
    /// It is not compared.
    Nothing,
}

/// One scan: what to read, and what to compare with.
#[derive(Debug)]
pub struct Scan<'a> {
    /// What it is done for, to tell how far it is.
    pub what: &'static str,
    /// The memory.
    pub input: &'a Input<'a>,
    /// Where its data is; empty for a pipe.
    pub spans: &'a Spans,
    /// Bytes of a block.
    pub block_size: u64,
    /// The parent, where there is one.
    pub parent: Option<&'a Chain>,
    /// What comparing with the parent will find.
    pub expect: Expect,
    /// Whether to take checksums of what is stored.
    pub sums: bool,
    /// The raw file, if its zeros may become holes as they are found.
    pub punch: Option<Holes<'a>>,
    /// Where what is stored goes, if it is copied.
    pub append: Option<Append<'a>>,
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Runs in order, from 0 to the end of memory, adjacent ones unlike.
    pub runs: Vec<Run>,
    /// Checksums of all that is stored, in order, by offset into memory; none if none were wanted.
    pub sums: Vec<Sum>,
}

/// The buffers of one thread.
#[derive(Debug, Default)]
struct Buffers {
    /// A batch's data.
    data: Vec<u8>,
    /// What the parent has in place of some of it.
    parent: Vec<u8>,
}

impl Scan<'_> {
    /// Reads what must be read.
    ///
    /// # Errors
    /// What reading or writing said; `timeout` when interrupted.
    pub fn run(&self) -> Result<Scanned, wire::Error> {
        let spans = self.spans.blocks(self.block_size);
        let to_read = match self.input {
            Input::Pipe { .. } => u64::MAX,
            _ => spans.iter().filter(|span| span.is_read()).map(Span::length).sum(),
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS) as u64;
        let threads = threads.min(to_read / THREAD_WORTH).max(1);

        let total = Some(to_read).filter(|bytes| *bytes < u64::MAX);
        let progress = wire::Progress::bytes(self.what, total);
        let feed = Feed::new(self.input, spans, self.block_size);
        let failed = AtomicBool::new(false);
        let work = || self.work(&feed, &failed, &progress);
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
        self.input.check()?;
        self.punch.as_ref().map_or(Ok(()), Holes::finish)?;
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

    fn work(
        &self,
        feed: &Feed,
        failed: &AtomicBool,
        progress: &wire::Progress,
    ) -> Result<Scanned, wire::Error> {
        /// Who waits for this thread's turn waits no more, also when it panics.
        struct Ended<'a>(&'a Scan<'a>, &'a AtomicBool, bool);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                if !self.2 {
                    self.1.store(true, Ordering::Relaxed);
                    self.0.append.iter().for_each(Append::give_up);
                }
            }
        }
        let mut ended = Ended(self, failed, false);
        let mut found = Scanned::default();
        let mut buffers = Buffers::default();
        let mut batch = Batch::default();
        while !failed.load(Ordering::Relaxed) && feed.next(&mut batch, &mut buffers.data)? {
            self.batch(&batch, &mut buffers, &mut found)?;
            progress.add(buffers.data.len() as u64);
        }
        ended.2 = true;
        Ok(found)
    }

    fn batch(&self, batch: &Batch, buffers: &mut Buffers, found: &mut Scanned) -> Result<(), wire::Error> {
        let Buffers { data, parent } = buffers;
        // The runs that are data, and where each is in the buffer.
        let mut runs: Vec<(Run, usize)> = Vec::new();
        let mut at = 0;
        for span in &batch.spans {
            let range = span.range.clone();
            match span.source {
                Source::Zero => push(&mut found.runs, Run { range, fate: Fate::Zero, data: false }),
                Source::Parent => push(&mut found.runs, Run { range, fate: Fate::Inherited, data: false }),
                Source::Raw | Source::Mixed => {
                    let bytes = &mut data[at..at + span.length() as usize];
                    if span.source == Source::Mixed {
                        self.fill_from_parent(&range, bytes)?;
                    }
                    let first = runs.len();
                    self.fates(span, bytes, parent, |run| {
                        let place = at + (run.range.start - span.range.start) as usize;
                        match runs[first..].last_mut() {
                            Some((last, _)) if last.fate == run.fate => last.range.end = run.range.end,
                            _ => runs.push((run, place)),
                        }
                    })?;
                    at += span.length() as usize;
                    runs[first..].iter().for_each(|(run, _)| push(&mut found.runs, run.clone()));
                }
            }
        }
        let place = |(run, at): &(Run, usize)| *at..at + run.length() as usize;
        let stored = || runs.iter().filter(|(run, _)| run.fate == Fate::Stored);
        if self.sums {
            found.sums.extend(stored().map(|run| Sum::of(run.0.range.clone(), &data[place(run)])));
        }
        if let Some(holes) = &self.punch {
            let zeros = runs.iter().filter(|(run, _)| run.fate == Fate::Zero);
            holes.make(zeros.map(|(run, _)| run.range.clone()))?;
        }
        if let Some(append) = &self.append {
            let length = compact(data, stored().map(place));
            append.write(batch.turn, &data[..length])?;
        }
        Ok(())
    }

    /// Tells what becomes of each block of a span of data, in order.
    fn fates(
        &self,
        span: &Span,
        bytes: &[u8],
        scratch: &mut Vec<u8>,
        mut tell: impl FnMut(Run),
    ) -> Result<(), Error> {
        let mut tell = |start: u64, fate| {
            tell(Run { range: start..start + self.block_size, fate, data: true });
        };
        let blocks = |from: u64, to: u64| {
            let bytes = &bytes[(from - span.range.start) as usize..(to - span.range.start) as usize];
            bytes.chunks(self.block_size as usize).zip((from..to).step_by(self.block_size as usize))
        };
        let Some(parent) = self.parent.filter(|_| self.expect != Expect::Nothing) else {
            for (block, start) in blocks(span.range.start, span.range.end) {
                tell(start, if is_zero(block) { Fate::Zero } else { Fate::Stored });
            }
            return Ok(());
        };
        // That data is the parent's is no rarity in a diff: KVM's dirty log counts a page as dirty that the guest has only
        // read (x86 maps it writable at a read fault where the host's mapping allows it).
        for record in parent.header.range(span.range.start, span.range.end) {
            let whole = self.expect == Expect::Same && !record.is_zero();
            if whole {
                scratch.resize(record.length as usize, 0);
                parent.read_record(&record, scratch)?;
            }
            for (block, start) in blocks(record.offset, record.end()) {
                let fate = match is_zero(block) {
                    true => Fate::Zero,
                    false if record.is_zero() => Fate::Stored,
                    false => {
                        let same = match whole {
                            true => scratch[(start - record.offset) as usize..][..block.len()] == *block,
                            false => {
                                equals(parent, &record.clip(start, start + self.block_size), block, scratch)?
                            }
                        };
                        if same { Fate::Inherited } else { Fate::Stored }
                    }
                };
                tell(start, fate);
            }
        }
        Ok(())
    }

    /// Puts the parent's pages into a block that has some of its own.
    fn fill_from_parent(&self, block: &Range<u64>, buffer: &mut [u8]) -> Result<(), Error> {
        let Some(parent) = self.parent else { return Ok(()) };
        for range in self.spans.inherited(block.clone()) {
            let (start, end) = (range.start - block.start, range.end - block.start);
            parent.read(range.start, &mut buffer[start as usize..end as usize])?;
        }
        Ok(())
    }
}

/// Whether the parent's block, `record`, holds these bytes. It is read only if its beginning does.
fn equals(parent: &Chain, record: &Record, block: &[u8], scratch: &mut Vec<u8>) -> Result<bool, Error> {
    let mut probe = [0; PROBE];
    parent.read_record(record, &mut probe)?;
    if probe != block[..PROBE] {
        return Ok(false);
    }
    scratch.resize(block.len(), 0);
    parent.read_record(record, scratch)?;
    Ok(scratch == block)
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
