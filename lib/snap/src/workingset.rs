//! The working set: which memory a VM asks for first when it is restored, as its last restores were seen to
//! (docs/format.md). Whoever loads that before it is asked for saves the VM the waiting; loading too much makes it wait
//! longer.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Undo, Value, json};

use crate::{Error, Ranges, directory, place};

/// The file's name in a snapshot's directory.
pub const FILE: &str = "workingset";

/// The version of the format.
const VERSION: u64 = 1;

/// The most ranges of a file.
const MOST_RANGES: usize = 1 << 16;

/// A longer file no set has: bytes.
const LONGEST: u64 = 4 << 20;

/// The most that is loaded before it is asked for, in bytes.
const MOST: u64 = 256 << 20;

/// How many runs are remembered: one bit each.
const REMEMBERED: u64 = 8;

/// Offsets are multiples of this.
const PAGE: u64 = 4096;

/// A working set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkingSet {
    /// The build of the image that it belongs to. Another image's has other memory at the same offsets.
    pub build: Uuid,
    /// How many restores were watched.
    pub runs: u64,
    /// In order, without overlap.
    ranges: Vec<Seen>,
}

/// Memory that the same runs asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    range: Range<u64>,
    /// A bit for each of the last eight runs: the lowest is the newest.
    by: u8,
}

/// How well a set foresaw what a run asked for, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Was in the set and asked for.
    pub hit: u64,
    /// Was asked for and not in the set.
    pub missed: u64,
    /// Was in the set and not asked for.
    pub wasted: u64,
}

/// Why bytes are no working set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WorkingSetFault(String);

impl WorkingSet {
    /// An empty one, for this image.
    pub fn new(build: Uuid) -> Self {
        Self { build, runs: 0, ranges: Vec::new() }
    }

    /// The one in a snapshot's directory; `None` when there is none.
    ///
    /// # Errors
    /// What reading said, or what is wrong with it.
    pub fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(FILE);
        let named = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(&error)),
            Ok(_) => Self::parse(&bytes).map(Some).map_err(|fault| named(&fault)),
        }
    }

    /// The one in a snapshot's directory if it belongs to this image.
    ///
    /// # Errors
    /// As [`WorkingSet::read`]; that it belongs to another image.
    pub fn read_for(dir: &Path, build: Uuid) -> Result<Option<Self>, String> {
        match Self::read(dir)? {
            Some(set) if set.build != build => Err(format!(
                "{}: it belongs to build {}, the image is {build}",
                dir.join(FILE).display(),
                set.build
            )),
            set => Ok(set),
        }
    }

    /// Reads the file form.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, WorkingSetFault> {
        let fault = |what: String| WorkingSetFault(what);
        if bytes.len() as u64 > LONGEST {
            return Err(fault(format!("longer than {LONGEST} bytes")));
        }
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| fault(format!("not JSON: {error}")))?;
        let number = |name: &str| {
            let found = value.get(name).ok_or_else(|| fault(format!("has no {name}")))?;
            found.as_u64().ok_or_else(|| fault(format!("{name} is {found}")))
        };
        match number("version")? {
            VERSION => {}
            other => return Err(fault(format!("version {other} is not known"))),
        }
        let build = value.get("build").and_then(Value::as_str).and_then(|build| Uuid::try_parse(build).ok());
        let build = build.ok_or_else(|| fault("has no build that is a UUID".into()))?;
        let runs = number("runs")?;
        let list = value.get("ranges").and_then(Value::as_array);
        let list = list.ok_or_else(|| fault("has no array of ranges".into()))?;
        if list.len() > MOST_RANGES {
            return Err(fault(format!("{} ranges; at most {MOST_RANGES} are written", list.len())));
        }
        let mut ranges: Vec<Seen> = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            let after = ranges.last().map_or(0, |last| last.range.end);
            let seen = Seen::parse(entry, runs).filter(|seen| seen.range.start >= after);
            ranges.push(seen.ok_or_else(|| {
                fault(format!("range {index} is {entry}; wants [offset, length, runs] in order, whole pages"))
            })?);
        }
        Ok(Self { build, runs, ranges })
    }

    /// The file form, one line.
    pub fn to_json(&self) -> String {
        let ranges: Vec<_> = self
            .ranges
            .iter()
            .map(|seen| [seen.range.start, seen.range.end - seen.range.start, seen.by.into()])
            .collect();
        json!({"version": VERSION, "build": self.build.to_string(), "runs": self.runs, "ranges": ranges})
            .to_string()
    }

    /// Remembers what one more run asked for, whole pages. What none of the last eight runs asked for is forgotten.
    pub fn add_run(&mut self, asked: &Ranges) {
        let old = std::mem::take(&mut self.ranges);
        let mut cuts: Vec<u64> = old
            .iter()
            .map(|seen| &seen.range)
            .cloned()
            .chain(asked.ranges())
            .flat_map(|range| [range.start, range.end])
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut rest = old.iter().peekable();
        for piece in cuts.windows(2).map(|pair| pair[0]..pair[1]) {
            while rest.next_if(|seen| seen.range.end <= piece.start).is_some() {}
            let before = rest.peek().filter(|seen| seen.range.start <= piece.start).map_or(0, |seen| seen.by);
            let by = before << 1 | u8::from(asked.contains(piece.start));
            match self.ranges.last_mut() {
                Some(last) if last.by == by && last.range.end == piece.start => last.range.end = piece.end,
                _ if by != 0 => self.ranges.push(Seen { range: piece, by }),
                _ => {}
            }
        }
        self.runs = self.runs.saturating_add(1);
        self.keep(MOST_RANGES, |_| 1);
    }

    /// What to load before it is asked for, in order: what at least half of the last eight runs asked for, of which at most
    /// 256 MiB, what most of them did.
    pub fn likely(&self) -> Ranges {
        let runs = self.runs.min(REMEMBERED);
        let mut likely = self.clone();
        likely.ranges.retain(|seen| u64::from(seen.by.count_ones()) * 2 >= runs);
        likely.keep(MOST as usize, |seen| (seen.range.end - seen.range.start) as usize);
        likely.ranges.into_iter().map(|seen| seen.range).collect()
    }

    /// How well the set foresaw what a run asked for.
    pub fn compare(&self, asked: &Ranges) -> Compared {
        let likely = self.likely();
        let hit =
            likely.ranges().flat_map(|range| asked.clipped(range)).map(|part| part.end - part.start).sum();
        Compared { hit, missed: asked.bytes() - hit, wasted: likely.bytes() - hit }
    }

    /// Forgets ranges until the others, all weights together, are at most `most`: first what fewest runs asked for, of these
    /// what was not asked for for longest.
    fn keep(&mut self, most: usize, weight: impl Fn(&Seen) -> usize) {
        if self.ranges.iter().map(&weight).sum::<usize>() <= most {
            return;
        }
        self.ranges
            .sort_by_key(|seen| (8 - seen.by.count_ones(), seen.by.trailing_zeros(), seen.range.start));
        let mut total = 0;
        // One that is too large leaves its room to others.
        self.ranges.retain(|seen| {
            let fits = total + weight(seen) <= most;
            total += if fits { weight(seen) } else { 0 };
            fits
        });
        self.ranges.sort_by_key(|seen| seen.range.start);
    }
}

impl Seen {
    fn parse(entry: &Value, runs: u64) -> Option<Self> {
        let [offset, length, by] = entry.as_array()?.as_slice() else { return None };
        let (offset, length, by) = (offset.as_u64()?, length.as_u64()?, by.as_u64()?);
        let end = offset.checked_add(length)?;
        let whole = length > 0 && offset.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        // No run can be remembered that never was.
        let by = u8::try_from(by).ok().filter(|by| *by != 0 && u64::from(by.ilog2()) < runs)?;
        whole.then_some(Self { range: offset..end, by })
    }
}

/// Writes a snapshot's working set whole; one that is there is replaced. What somebody who was killed has begun goes.
///
/// # Errors
/// What the kernel said.
pub fn write(dir: &Path, set: &WorkingSet, undo: &mut Undo) -> Result<PathBuf, Error> {
    let path = dir.join(FILE);
    let begun = |name: &String| name.starts_with(&format!(".{FILE}.")) && name.ends_with(".partial");
    for left in directory::names(dir)?.into_iter().filter(begun).map(|name| dir.join(name)) {
        if place::is_left_over(&left).unwrap_or(false) {
            let _ = std::fs::remove_file(left);
        }
    }
    let partial = place::Partial::create(&path)?;
    io::Write::write_all(&mut &partial.file, set.to_json().as_bytes()).map_err(Error::io("write", &path))?;
    partial.replace(undo)?;
    Ok(path)
}

/// Brings the working set of one image along to another that has nearly the same memory at the same offsets: one merged or
/// rebased from it, or a later one of the same guest. Without it nothing is wrong, so whatever fails is only told.
pub(crate) fn carry(from: (&Path, Uuid), to: (&Path, Uuid), undo: &mut Undo) {
    let carried = match WorkingSet::read(from.0) {
        Ok(Some(set)) if set.build == from.1 => {
            write(to.0, &WorkingSet { build: to.1, ..set }, undo).map(drop).map_err(|error| error.to_string())
        }
        Ok(_) => Ok(()),
        Err(what) => Err(what),
    };
    if let Err(what) = carried {
        log::warn!("the working set does not come along: {what}");
    }
}

#[cfg(test)]
#[path = "tests/workingset.rs"]
mod tests;
