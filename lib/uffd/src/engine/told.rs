//! What an engine tells of itself and of its VM.

use std::fs::File;
use std::path::{Path, PathBuf};

use snap::Ranges;
use sys::uffd::Uffd;

use super::Engine;
use crate::area::Area;
use crate::error::LostPage;
use crate::seen::Counts;
use crate::trace::{self, Header, Writer};
use crate::{Error, Region};

impl Engine {
    /// Bytes that only the image has so far. 0: nothing depends on the image any more.
    pub fn missing(&self) -> u64 {
        self.areas.iter().map(Area::missing).sum()
    }

    /// Whether a fault waits to be answered.
    pub fn is_asked(&self) -> bool {
        !self.faults.is_empty()
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.seen.counts()
    }

    /// What was seen, as fields of `stats`.
    pub(crate) fn seen(&mut self) -> serde_json::Value {
        let mut fields = self.seen.fields();
        let removed = self.areas.iter().map(|area| area.removed.count() * area.region.page_size);
        fields["removed_bytes"] = removed.sum::<u64>().into();
        if let Some(replay) = &self.replay {
            fields["working_set"] = replay.fields();
        }
        fields
    }

    /// Writes down what happens from now on, when the VMM with this pid has just connected.
    pub(crate) fn trace(&mut self, file: File, pid: i32) {
        let regions = || self.areas.iter().map(|area| &area.region);
        let header = Header {
            size: Region::end_of(regions()),
            page_size: regions().map(|region| region.page_size).min().unwrap_or(1),
            connected: trace::now(),
            pid: pid as u32,
        };
        self.seen.trace(Writer::new(file, header));
    }

    /// The ranges of the image that the VMM has discarded so far.
    pub fn removed(&self) -> Ranges {
        self.removed_since(None)
    }

    /// How many pages the VMM has discarded so far.
    pub fn removed_pages(&self) -> u64 {
        self.areas.iter().map(|area| area.removed.count()).sum()
    }

    /// The ranges of the image that the VMM has discarded since the last snapshot in `parent`, see [`Epochs::since`].
    pub(crate) fn removed_since(&self, parent: Option<&Path>) -> Ranges {
        let epoch = self.epochs.since(parent);
        let ranges = |area: &Area| {
            let runs = area.discarded_since(epoch);
            runs.map(|run| area.offset_of(run.start)..area.offset_of(run.end)).collect::<Vec<_>>()
        };
        self.areas.iter().flat_map(ranges).collect()
    }

    /// A snapshot was dumped into this directory: what is discarded from here on belongs to the next.
    pub(crate) fn dumped(&mut self, dir: PathBuf) -> Result<(), Error> {
        self.epochs.end(dir).map_err(|source| Error::State { source })
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        self.areas.iter().map(|area| area.region.size).sum()
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        self.areas.len()
    }

    /// The descriptor to poll.
    pub fn uffd(&self) -> &Uffd {
        &self.uffd
    }

    /// Pages poisoned since it was asked last.
    pub fn poisoned(&mut self) -> Vec<LostPage> {
        std::mem::take(&mut self.poisoned)
    }

    /// The first page that could not be loaded ahead, once.
    pub(crate) fn lost_ahead(&mut self) -> Option<LostPage> {
        let first = self.lost_ahead.clone().filter(|_| !self.told_of_lost);
        self.told_of_lost |= first.is_some();
        first
    }

    /// How many pages are poisoned.
    pub fn poisoned_pages(&self) -> u64 {
        self.areas.iter().map(|area| area.poisoned.count()).sum()
    }
}
