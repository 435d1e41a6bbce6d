//! Loading a recorded working set: how that goes, as far as it can be told. A page that is loaded before it is asked for is
//! never asked for, so whether it was wanted only another recording tells.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snap::Ranges;

/// How long faults are compared with the set: as long as one is recorded by default.
const WATCHED: Duration = crate::workingset::WINDOW;

/// A set that is being loaded, or was.
#[derive(Debug)]
pub(crate) struct Replay {
    set: Ranges,
    runs: u64,
    began: Instant,
    /// Bytes of it that were loaded before anybody asked.
    loaded: u64,
    /// Faults on pages of it, which came too late; and on other pages of the image.
    late: u64,
    missed: u64,
    took: Option<Duration>,
}

impl Replay {
    /// Begins to load what the last `runs` restores asked for.
    pub fn new(set: Ranges, runs: u64) -> Self {
        Self { set, runs, began: Instant::now(), loaded: 0, late: 0, missed: 0, took: None }
    }

    /// A page of the image was asked for.
    pub fn asked(&mut self, offset: u64, at: Instant) {
        if at.saturating_duration_since(self.began) < WATCHED {
            *(if self.set.contains(offset) { &mut self.late } else { &mut self.missed }) += 1;
        }
    }

    /// So many bytes of it were loaded.
    pub fn loaded(&mut self, bytes: u64) {
        self.loaded += bytes;
    }

    /// All of it is there.
    pub fn done(&mut self) {
        self.took.get_or_insert_with(|| self.began.elapsed());
    }

    pub fn fields(&self) -> Value {
        json!({"runs": self.runs, "bytes": self.set.bytes(), "loaded_bytes": self.loaded, "late": self.late,
               "missed": self.missed, "ms": self.took.map(wire::ms)})
    }
}
