//! The working set: which pages a VM asked for first after it was restored. A later restore of the same snapshot asks for
//! nearly the same ones, so they are loaded before it does.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snap::Removed;

use crate::Error;

/// How long pages are noted, from the first on. A longer window makes a larger set and slower restores.
const WINDOW: Duration = Duration::from_secs(3);

/// How many pages are noted at most.
const PAGES: usize = 1 << 16;

/// The file's name in a snapshot directory.
const FILE: &str = "workingset";

/// Notes pages as they are asked for.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    since: Option<Instant>,
    window: Duration,
    pages: Vec<Range<u64>>,
}

impl Recorder {
    /// Notes pages for the snapshot in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), since: None, window: WINDOW, pages: Vec::new() }
    }

    pub(crate) fn note(&mut self, offset: u64, length: u64) {
        self.since.get_or_insert_with(Instant::now);
        if self.pages.len() < PAGES {
            self.pages.push(offset..offset + length);
        }
    }

    /// When the noting ends. `None` before the first page.
    pub fn ends(&self) -> Option<Instant> {
        Some(self.since? + self.window)
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.pages.len() == PAGES || self.ends().is_some_and(|end| now >= end)
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Writes the file, in the form of the removed ranges, in address order: what is asked for is nearly a set, its order
    /// differs from run to run. Nothing is written when nothing was noted.
    ///
    /// # Errors
    /// What writing said.
    pub fn write(self) -> Result<(), Error> {
        if self.pages.is_empty() {
            return Ok(());
        }
        let set: Removed = self.pages.into_iter().collect();
        replace(&self.path, set.to_json().as_bytes())
    }
}

/// Reads the recording in a snapshot's directory. None when there is none; one that cannot be read is only a loss of time.
///
/// # Errors
/// Why there is one and it cannot be used.
pub fn read(dir: &Path) -> Result<Vec<Range<u64>>, String> {
    let path = dir.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => match Removed::parse(&bytes) {
            Ok(set) => Ok(set.ranges().collect()),
            Err(fault) => Err(format!("{}: {fault}", path.display())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// Writes a file beside its name and renames it: who reads it sees all of it or the one before.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let done = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    done.map_err(|source| {
        let _ = fs::remove_file(&beside);
        Error::io("write", path)(source)
    })
}
