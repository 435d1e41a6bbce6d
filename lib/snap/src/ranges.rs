//! Ranges of a memory image: those that a VMM discarded, or a restore asked for.

use std::collections::BTreeMap;
use std::ops::Range;

use wire::Value;

/// A set of byte ranges of a memory image, kept sorted and merged. In a file it has those that a page server saw discarded:
/// they read as zeros from then on, and a VMM does not log that as a change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(BTreeMap<u64, u64>);

/// What `Ranges` cannot be read from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RangesFault(String);

impl Ranges {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a range of offsets into the memory image, in bytes. Logarithmic in the number of ranges kept.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Take in every range that overlaps or touches, from the right.
        while let Some((&other_start, &other_end)) = self.0.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.0.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    /// Whether the byte at `offset` is in the set.
    pub fn contains(&self, offset: u64) -> bool {
        self.0.range(..=offset).next_back().is_some_and(|(_, &end)| offset < end)
    }

    /// The ranges, in order, with a gap between each and the next.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// The parts of `within` that are in the set, in order.
    pub fn clipped(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let Range { start, end } = within;
        let first = self.0.range(..=start).next_back().map_or(start, |(&start, _)| start);
        self.0
            .range(first..end.max(first))
            .map(move |(&from, &to)| from.max(start)..to.min(end))
            .filter(|range| !range.is_empty())
    }

    /// Whether there is no range.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes there are in the ranges.
    pub fn bytes(&self) -> u64 {
        self.ranges().map(|range| range.end - range.start).sum()
    }

    /// Where the last range ends; 0 for the empty set.
    pub fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, &end)| end)
    }

    /// Reads the file form, `{"ranges": [[offset, length], …]}`, or the array alone. Order and overlaps do not matter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, RangesFault> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| RangesFault(format!("not JSON: {error}")))?;
        Self::from_value(&value)
    }

    /// Reads either form from JSON already parsed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_value(value: &Value) -> Result<Self, RangesFault> {
        let wrong = |what: &dyn std::fmt::Display| {
            RangesFault(format!("wants {{\"ranges\": [[offset, length], …]}} in bytes; {what}"))
        };
        let list =
            value.get("ranges").unwrap_or(value).as_array().ok_or_else(|| wrong(&"there is no array"))?;
        let mut set = Self::new();
        for (index, pair) in list.iter().enumerate() {
            let numbers = pair.as_array().map(Vec::as_slice).unwrap_or_default();
            let range = match numbers {
                [offset, length] => offset
                    .as_u64()
                    .zip(length.as_u64())
                    .and_then(|(offset, length)| Some(offset..offset.checked_add(length)?)),
                _ => None,
            };
            set.insert(range.ok_or_else(|| wrong(&format_args!("range {index} is {pair}")))?);
        }
        Ok(set)
    }

    /// The file form, one line.
    pub fn to_json(&self) -> String {
        let ranges: Vec<_> = self.ranges().map(|range| [range.start, range.end - range.start]).collect();
        wire::json!({ "ranges": ranges }).to_string()
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut set = Self::new();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
#[path = "tests/ranges.rs"]
mod tests;
