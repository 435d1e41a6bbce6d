//! Recording the working set: which pages a VM asks for first after it was restored. A later restore of the same snapshot
//! asks for nearly the same ones, so they are loaded before it does.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::note::note;
use serde_json::{Value, json};
use snap::workingset::{self, Compared};
use snap::{Ranges, WorkingSet};
use uuid::Uuid;
use wire::Undo;

/// How long pages are noted if nobody says, from the first on. A longer window makes a larger set and slower restores.
pub const WINDOW: Duration = Duration::from_secs(3);

/// The longest window, in milliseconds.
pub const LONGEST_MS: u64 = 60_000;

/// How many pages are noted at most.
const PAGES: usize = 1 << 16;

/// So many pages one after the other, each behind the last, are no guest's doing: somebody dumps its memory.
const DUMPED: usize = 4096;

/// How many restores are worth watching: then half of them means something.
const ENOUGH: u64 = 3;

/// Whether the snapshot in `dir` gains from another recording: it has none for its image, or one of fewer than three runs.
#[must_use]
pub fn is_wanted(dir: &Path) -> bool {
    snap::directory::read_build(dir)
        .is_some_and(|build| !matches!(WorkingSet::read_for(dir, build), Ok(Some(set)) if set.runs >= ENOUGH))
}

/// Notes pages as they are asked for.
#[derive(Debug)]
pub struct Recorder {
    dir: PathBuf,
    build: Uuid,
    since: Option<Instant>,
    window: Duration,
    pages: Vec<std::ops::Range<u64>>,
    /// How many of the last ones were in the order of addresses.
    ascending: usize,
    dumped: bool,
}

impl Recorder {
    /// Notes pages for the snapshot in `dir`, of this build, until so long after the first.
    pub fn new(dir: &Path, build: Uuid, window: Duration) -> Self {
        Self {
            dir: dir.to_owned(),
            build,
            since: None,
            window,
            pages: Vec::new(),
            ascending: 0,
            dumped: false,
        }
    }

    pub(crate) fn note(&mut self, offset: u64, length: u64) {
        self.since.get_or_insert_with(Instant::now);
        if self.pages.len() == PAGES || self.dumped {
            return;
        }
        let follows = self.pages.last().is_some_and(|last| last.end <= offset);
        self.ascending = if follows { self.ascending + 1 } else { 1 };
        self.pages.push(offset..offset + length);
        if self.ascending == DUMPED {
            self.dumped = true;
            self.pages.truncate(self.pages.len() - DUMPED);
        }
    }

    /// When the noting ends. `None` before the first page.
    pub fn ends(&self) -> Option<Instant> {
        Some(self.since? + self.window)
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.pages.len() == PAGES || self.dumped || self.ends().is_some_and(|end| now >= end)
    }

    /// Adds the run to the snapshot's set, in a thread of its own: a VM waits for its pages meanwhile. `latency` is how
    /// long a fault takes. `None` when nothing was noted.
    pub(crate) fn write(self, latency: Duration) -> Option<Writing> {
        let begun = !self.pages.is_empty();
        begun.then(|| Writing(std::thread::spawn(move || self.add(latency))))
    }

    /// Two servers that do so at once: the last one's run counts, and the next restore records once more.
    fn add(self, latency: Duration) -> Result<Value, String> {
        let pages = self.pages.len();
        let asked: Ranges = self.pages.into_iter().collect();
        let earlier = WorkingSet::read_for(&self.dir, self.build).unwrap_or_else(|what| {
            note(format_args!("wrenn-uffd: a new working set begins: {what}"));
            None
        });
        let compared = earlier.as_ref().map(|set| set.compare(&asked));
        let mut set = earlier.unwrap_or_else(|| WorkingSet::new(self.build));
        set.add_run(&asked);
        let mut undo = Undo::default();
        workingset::write(&self.dir, &set, &mut undo)
            .map_err(|error| wire::Error::from(error).to_string())?;
        undo.commit();
        let mut told = json!({"pages": pages, "bytes": asked.bytes(), "runs": set.runs,
                              "set_bytes": set.likely().bytes()});
        if let Some(compared) = compared {
            told["compared"] = describe(compared, asked.bytes() / pages as u64, latency);
        }
        Ok(told)
    }
}

/// What the set that was there would have been worth in this run.
fn describe(Compared { hit, missed, wasted }: Compared, page_size: u64, latency: Duration) -> Value {
    let rate = hit as f64 / (hit + missed).max(1) as f64;
    let saved = latency.as_secs_f64() * 1e3 * (hit / page_size.max(1)) as f64;
    json!({"hit_bytes": hit, "missed_bytes": missed, "wasted_bytes": wasted,
           "hit_rate": (rate * 1e4).round() / 1e4, "estimated_saving_ms": (saved * 1e3).round() / 1e3})
}

/// A set that is being written.
#[derive(Debug)]
pub(crate) struct Writing(JoinHandle<Result<Value, String>>);

impl Writing {
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// The event that tells of it. A recording that cannot be written is no reason to let a VM down.
    pub fn event(self) -> (&'static str, Value) {
        match self.0.join() {
            Ok(Ok(told)) => ("recorded", told),
            Ok(Err(what)) => ("warning", json!({"message": format!("the working set is not kept: {what}")})),
            Err(_) => ("warning", json!({"message": "the working set is not kept: a bug, please report"})),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(Path::new("/nowhere"), Uuid::nil(), WINDOW)
    }

    #[test]
    fn a_dump_ends_the_recording_and_what_was_asked_for_before_it_counts() {
        let mut recorder = recorder();
        // A guest here and there; then somebody reads what is missing, in order, past pages that are there.
        [9000, 70, 8, 500].into_iter().for_each(|page| recorder.note(page * 4096, 4096));
        let now = Instant::now();
        for page in 0..DUMPED as u64 {
            assert!(!recorder.is_over(now));
            recorder.note(page * 3 * 4096, 4096);
        }
        assert!(recorder.is_over(now));
        recorder.note(4096, 4096);
        let asked: Vec<_> = recorder.pages.iter().map(|range| range.start / 4096).collect();
        assert_eq!(asked, [9000, 70, 8, 500]);
    }

    #[test]
    fn a_guest_that_now_and_then_reads_in_order_is_recorded() {
        let mut recorder = recorder();
        for page in 0..20_000u64 {
            recorder.note((page % 4000 * 3 + 7) * 4096, 4096);
        }
        assert!(!recorder.is_over(Instant::now()));
        assert_eq!(recorder.pages.len(), 20_000);
    }
}
