//! Memory written to a file.
//!
//! The file is the image as it is: no header, sparse. In a Full a hole is zeros. In a Diff a hole is a page that was not
//! written since the last dump or load, and a page that became zero is written as zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;
use vm_memory::Bytes;

use super::{Backing, Error, PAGE, Ram, map};

/// How much is copied at once, bytes: no region of memory ends inside such a piece.
const PIECE: u64 = 1 << 20;

/// How much of memory a dump holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Kind {
    /// All of it.
    #[default]
    Full,
    /// What was written since the last dump, the load or the boot, and once more what the last dump held.
    Diff,
}

/// What a dump wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dumped {
    /// Bytes of data in the file that this dump wrote.
    pub bytes: u64,
}

impl Ram {
    /// Writes the memory to `path` and syncs it. A file that is there is written into, not replaced, if its size is the
    /// memory's: a Diff is merged into it. Nobody may write to the memory meanwhile. What counts as written stays so.
    ///
    /// # Errors
    /// What opening, writing or syncing said.
    pub fn dump(&self, kind: Kind, path: &Path) -> Result<Dumped, Error> {
        let write = || {
            let file = File::options().write(true).create(true).truncate(false).open(path)?;
            let merge = file.metadata()?.len() == self.bytes;
            if !merge {
                file.set_len(0)?;
                file.set_len(self.bytes)?;
            }
            let mut target = Target { file, merge, dumped: Dumped::default() };
            match kind {
                Kind::Full => self.write_all(&mut target)?,
                Kind::Diff => self.write_changed(&mut target)?,
            }
            target.file.sync_all()?;
            Ok(target.dumped)
        };
        write().map_err(|source| Error::Write { path: path.into(), source })
    }

    fn write_changed(&self, target: &mut Target) -> io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        for run in self.changed.union(&self.last).runs(PIECE / PAGE) {
            let range = run.start * PAGE..run.end * PAGE;
            let piece = &mut buffer[..(range.end - range.start) as usize];
            self.read(piece, range.start)?;
            target.write(piece, range.start)?;
        }
        Ok(())
    }

    fn write_all(&self, target: &mut Target) -> io::Result<()> {
        match &self.backing {
            // What is not in our own file is zero, unless a page server has it.
            Backing::Own(file, None) => {
                let mut end = 0;
                for data in sys::sparse::data(file) {
                    let data = data?;
                    target.zero(end..data.start)?;
                    target.write_dense(data.clone(), |piece, at| file.read_exact_at(piece, at))?;
                    end = data.end;
                }
                target.zero(end..self.bytes)
            }
            Backing::Own(_, Some(_)) | Backing::File => {
                target.write_dense(0..self.bytes, |piece, at| self.read(piece, at))
            }
        }
    }

    /// What memory holds. Pages that only the page server has are fetched; those that were discarded stay missing, and
    /// are zeros.
    fn read(&self, piece: &mut [u8], offset: u64) -> io::Result<()> {
        let Backing::Own(file, server) = &self.backing else { return self.read_mapping(piece, offset) };
        // Looked for first: what comes in later is fetched once more.
        let holes = match server {
            Some(_) => self.missing(file, offset..offset + piece.len() as u64)?,
            None => Vec::new(),
        };
        file.read_exact_at(piece, offset)?;
        holes.into_iter().try_for_each(|hole| {
            let part = (hole.start - offset) as usize..(hole.end - offset) as usize;
            self.read_mapping(&mut piece[part], hole.start)
        })
    }

    /// The pages in this range of the image that are missing and were not discarded.
    fn missing(&self, file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let data = sys::sparse::next_data(file, at)?.unwrap_or(range.end..range.end);
            let hole = (at..data.start.min(range.end)).step_by(PAGE as usize);
            for page in hole.filter(|page| !self.discarded.is_addr_set(*page as usize)) {
                match missing.last_mut() {
                    Some(run) if run.end == page => run.end += PAGE,
                    _ => missing.push(page..page + PAGE),
                }
            }
            at = data.end;
        }
        Ok(missing)
    }

    fn read_mapping(&self, piece: &mut [u8], offset: u64) -> io::Result<()> {
        self.memory.read_slice(piece, map::address(offset)).map_err(io::Error::other)
    }
}

struct Target {
    file: File,
    /// It may hold something already.
    merge: bool,
    dumped: Dumped,
}

impl Target {
    fn write(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        self.dumped.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes a range, its zero pages as holes.
    fn write_dense(
        &mut self,
        range: Range<u64>,
        mut read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / PIECE + 1) * PIECE);
            let piece = &mut buffer[..(end - at) as usize];
            read(piece, at)?;
            for (zero, run) in runs(piece) {
                let place = at + run.start as u64..at + run.end as u64;
                if zero { self.zero(place)? } else { self.write(&piece[run], place.start)? }
            }
            at = end;
        }
        Ok(())
    }

    /// Makes a range zeros. It is a hole already in a file that was empty.
    fn zero(&mut self, range: Range<u64>) -> io::Result<()> {
        if !self.merge || range.is_empty() {
            return Ok(());
        }
        match sys::sparse::punch(&self.file, range.clone()) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let zeros = vec![0; PIECE as usize];
                for at in range.clone().step_by(PIECE as usize) {
                    self.file.write_all_at(&zeros[..(range.end - at).min(PIECE) as usize], at)?;
                }
                Ok(())
            }
            other => other,
        }
    }
}

/// Runs of pages that are zero (`true`), and of pages that are not.
fn runs(piece: &[u8]) -> Vec<(bool, Range<usize>)> {
    let mut runs: Vec<(bool, Range<usize>)> = Vec::new();
    for (index, page) in piece.chunks(PAGE as usize).enumerate() {
        let (zero, at) = (is_zero(page), index * PAGE as usize);
        match runs.last_mut() {
            Some((same, run)) if *same == zero => run.end = at + page.len(),
            _ => runs.push((zero, at..at + page.len())),
        }
    }
    runs
}

fn is_zero(page: &[u8]) -> bool {
    page == [0; PAGE as usize]
}
