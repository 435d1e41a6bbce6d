//! How full a disk is.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use sys::dm::DeviceMapper;
use wire::{Value, json};

use crate::Error;
use crate::exceptions::SECTOR;

/// Whether a disk can be written, or read at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It can.
    Ok,
    /// An error ended it: every access fails.
    Invalid,
    /// The CoW file is full: it can be read, writes to chunks not yet changed fail.
    Overflow,
    /// A merge into the image failed (never started by Wrenn).
    MergeFailed,
}

impl State {
    /// Its name in replies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Overflow => "overflow",
            Self::MergeFailed => "merge_failed",
        }
    }
}

/// The fill level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Whether it works.
    pub state: State,
    /// Sectors of 512 bytes taken; 0 where the kernel does not tell any more.
    pub used: u64,
    /// Sectors there are.
    pub total: u64,
    /// Sectors of those taken that hold the exception store itself.
    pub metadata: u64,
}

impl Usage {
    /// As it is in replies.
    pub fn to_json(self) -> Value {
        let percent = if self.total == 0 { 0.0 } else { 100.0 * self.used as f64 / self.total as f64 };
        json!({
            "state": self.state.name(),
            "used_sectors": self.used,
            "total_sectors": self.total,
            "metadata_sectors": self.metadata,
            "percent": (percent * 100.0).round() / 100.0,
        })
    }

    /// What the snapshot target says: `<used>/<total> <metadata>`, or a word. `None` for anything else, `Unknown` too.
    pub fn parse(text: &str) -> Option<Self> {
        let broken = |state| Self { state, used: 0, total: 0, metadata: 0 };
        match text.trim() {
            "Invalid" => return Some(broken(State::Invalid)),
            "Overflow" => return Some(broken(State::Overflow)),
            "Merge failed" => return Some(broken(State::MergeFailed)),
            _ => {}
        }
        let (fill, metadata) = text.trim().split_once(' ')?;
        let (used, total) = fill.split_once('/')?;
        let number = |text: &str| text.parse().ok();
        Some(Self {
            state: State::Ok,
            used: number(used)?,
            total: number(total)?,
            metadata: number(metadata)?,
        })
    }

    /// The fill level of a disk that is a file of its own: what is not a hole.
    pub fn of_file(metadata: &Metadata) -> Self {
        Self {
            state: State::Ok,
            used: metadata.blocks(),
            total: metadata.len().div_ceil(SECTOR),
            metadata: 0,
        }
    }
}

/// The fill level of a mapped device.
pub(crate) fn of_device(mapper: &DeviceMapper, uuid: &str, name: &str) -> Result<Usage, Error> {
    let targets = mapper.status(uuid).map_err(Error::device("ask for the status of", name))?;
    let text = targets.first().map(|target| target.text.as_str()).unwrap_or_default();
    Usage::parse(text).ok_or_else(|| {
        Error::device("understand the status of", name)(std::io::Error::other(format!("it says {text:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_the_kernel_gives_is_understood() {
        assert_eq!(
            Usage::parse("1200/4227072 16"),
            Some(Usage { state: State::Ok, used: 1200, total: 4_227_072, metadata: 16 })
        );
        for (text, state) in
            [("Invalid", State::Invalid), ("Overflow", State::Overflow), ("Merge failed", State::MergeFailed)]
        {
            assert_eq!(Usage::parse(text).unwrap().state, state);
        }
        for text in ["", "Unknown", "1/2", "a/b c", "1200 16"] {
            assert_eq!(Usage::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_full_disk_is_100_percent_and_an_unknown_size_is_no_division_by_zero() {
        let usage = |used, total| Usage { state: State::Ok, used, total, metadata: 0 }.to_json();
        assert_eq!(usage(8, 8)["percent"].to_string(), "100.0");
        assert_eq!(usage(1, 3)["percent"].to_string(), "33.33");
        assert_eq!(usage(0, 0)["percent"].to_string(), "0.0");
    }
}
