//! What the threads of a scan share: the work, handed out in order; the end of the file that they append to; the holes to
//! be made.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::input::{Input, read_pipe};
use crate::spans::{Source, Span};
use crate::{Error, place};

/// How much is read at a time: it stays in a core's cache between reading and testing.
pub const CHUNK: u64 = 256 << 10;

/// What a thread works on at a time: spans that follow each other.
#[derive(Debug, Default)]
pub struct Batch {
    /// Its place in the order.
    pub turn: usize,
    /// In order, in whole blocks.
    pub spans: Vec<Span>,
}

/// Hands out batches.
#[derive(Debug)]
pub struct Feed<'a> {
    input: &'a Input<'a>,
    block_size: u64,
    /// Bytes of data in a batch at most.
    step: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What is left; nothing of a pipe.
    spans: VecDeque<Span>,
    turn: usize,
    /// Where a pipe is.
    at: u64,
    ended: bool,
}

impl<'a> Feed<'a> {
    /// The spans, in whole blocks, of what is read from `input`; none of a pipe, which says itself what it has.
    pub fn new(input: &'a Input<'a>, spans: Vec<Span>, block_size: u64) -> Self {
        let state = State { spans: spans.into(), turn: 0, at: 0, ended: false };
        Self { input, block_size, step: CHUNK.max(block_size), state: Mutex::new(state) }
    }

    /// The next batch, and its data: the bytes of its spans that are read, one after the other. `false` after the last.
    ///
    /// # Errors
    /// What reading said; `corrupt` when a pipe is too short or too long; `timeout` when interrupted.
    pub fn next(&self, batch: &mut Batch, buffer: &mut Vec<u8>) -> Result<bool, wire::Error> {
        wire::check_interrupt()?;
        batch.spans.clear();
        let mut state = lock(&self.state);
        batch.turn = state.turn;
        state.turn += 1;
        if let Input::Pipe { pipe, wanted } = self.input {
            return self.next_of_pipe(&mut state, pipe, *wanted, batch, buffer);
        }
        let bytes = self.take(&mut state, batch);
        drop(state);
        buffer.resize(bytes as usize, 0);
        let mut filled = 0;
        for span in batch.spans.iter().filter(|span| span.is_read()) {
            let length = span.length() as usize;
            self.input.read(span.range.start, &mut buffer[filled..filled + length])?;
            filled += length;
        }
        Ok(!batch.spans.is_empty())
    }

    /// Moves spans into the batch, as many as are read at a time. Returns the bytes that are.
    fn take(&self, state: &mut State, batch: &mut Batch) -> u64 {
        let mut bytes = 0;
        while let Some(span) = state.spans.front_mut().filter(|_| bytes < self.step) {
            if !span.is_read() {
                batch.spans.extend(state.spans.pop_front());
                continue;
            }
            let room = (self.step - bytes) / self.block_size * self.block_size;
            let end = span.range.end.min(span.range.start + room);
            batch.spans.push(Span { range: span.range.start..end, source: span.source });
            bytes += end - span.range.start;
            span.range.start = end;
            if span.range.is_empty() {
                state.spans.pop_front();
            }
        }
        bytes
    }

    fn next_of_pipe(
        &self,
        state: &mut State,
        pipe: &File,
        wanted: Option<u64>,
        batch: &mut Batch,
        buffer: &mut Vec<u8>,
    ) -> Result<bool, wire::Error> {
        if state.ended {
            return Ok(false);
        }
        buffer.resize(self.step as usize, 0);
        let read = read_pipe(pipe, buffer)? as u64;
        state.ended = read < self.step;
        let bytes = state.at + read;
        let wrong = match wanted {
            Some(wanted) => bytes > wanted || (state.ended && bytes < wanted),
            None => bytes == 0,
        };
        if wrong || !bytes.is_multiple_of(self.block_size) {
            return Err(Error::PipeLength { bytes, wanted, block_size: self.block_size }.into());
        }
        buffer.truncate(read as usize);
        let range = state.at..state.at + read;
        state.at = range.end;
        if read > 0 {
            batch.spans.push(Span { range, source: Source::Raw });
        }
        Ok(read > 0)
    }
}

/// A file at whose end the threads put what they store, in the order of their batches.
#[derive(Debug)]
pub struct Append<'a> {
    file: &'a File,
    path: &'a Path,
    end: Mutex<End>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct End {
    turn: usize,
    at: u64,
    given_up: bool,
}

impl<'a> Append<'a> {
    /// Appends to an empty file; `path` is its name in errors.
    pub fn new(file: &'a File, path: &'a Path) -> Self {
        Self { file, path, end: Mutex::default(), moved: Condvar::new() }
    }

    /// Appends what a batch stores, once all before it are known to have their place. Every batch calls it once.
    ///
    /// # Errors
    /// What writing said.
    pub fn write(&self, turn: usize, bytes: &[u8]) -> Result<(), Error> {
        let mut end = lock(&self.end);
        while end.turn != turn && !end.given_up {
            end = self.moved.wait(end).unwrap_or_else(PoisonError::into_inner);
        }
        let at = end.at;
        end.turn += 1;
        end.at += bytes.len() as u64;
        drop(end);
        self.moved.notify_all();
        self.file.write_all_at(bytes, at).map_err(Error::io("write", self.path))
    }

    /// A batch will not come: nobody waits for it.
    pub fn give_up(&self) {
        lock(&self.end).given_up = true;
        self.moved.notify_all();
    }
}

/// A raw file whose zeros become holes as they are found. The kernel lets one thread at a time make holes in a file: the
/// others leave theirs to it and go on reading.
#[derive(Debug)]
pub struct Holes<'a> {
    file: &'a File,
    path: &'a Path,
    waiting: Mutex<Vec<Range<u64>>>,
    turn: Mutex<()>,
}

impl<'a> Holes<'a> {
    /// Makes holes in a file; `path` is its name in errors.
    pub fn new(file: &'a File, path: &'a Path) -> Self {
        Self { file, path, waiting: Mutex::default(), turn: Mutex::default() }
    }

    /// Makes holes of these ranges and of those that wait, or leaves them waiting for who is at it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn make(&self, ranges: impl Iterator<Item = Range<u64>>) -> Result<(), Error> {
        lock(&self.waiting).extend(ranges);
        match self.turn.try_lock() {
            Ok(_turn) => self.finish(),
            Err(_) => Ok(()),
        }
    }

    /// Makes holes of all that wait.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn finish(&self) -> Result<(), Error> {
        let ranges = std::mem::take(&mut *lock(&self.waiting));
        let punched = ranges.into_iter().try_for_each(|range| place::punch(self.file, range));
        punched.map_err(Error::io("make holes in", self.path))
    }
}

/// The other threads' state is whole also when one of them panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves ranges of a buffer to its beginning, one after the other. Returns how long they are together.
pub fn compact(buffer: &mut [u8], ranges: impl Iterator<Item = Range<usize>>) -> usize {
    let mut end = 0;
    for range in ranges {
        let length = range.len();
        if range.start != end {
            buffer.copy_within(range, end);
        }
        end += length;
    }
    end
}
