//! A set of pages of the memory image, one bit a page.

use std::ops::Range;

/// Pages by number, from 0 on. Their number is a multiple of 64, as memory is whole MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet(Vec<u64>);

impl PageSet {
    /// None of so many pages.
    pub fn empty(pages: u64) -> Self {
        Self(vec![0; pages.div_ceil(64) as usize])
    }

    /// Makes it hold every page.
    pub fn fill(&mut self) {
        self.0.fill(u64::MAX);
    }

    /// Adds the pages whose bits are set; the first bit is page `first`, a multiple of 64. Bits past the end are ignored.
    pub fn insert_words(&mut self, first: u64, words: &[u64]) {
        for (mine, more) in self.0.iter_mut().skip((first / 64) as usize).zip(words) {
            *mine |= more;
        }
    }

    /// The pages of both.
    pub fn union(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a | b).collect())
    }

    /// Runs of pages, in order, none longer than its `limit` pages and none across a multiple of it. `limit` is a
    /// multiple of 64.
    pub fn runs(&self, limit: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let chunk = (limit / 64) as usize;
        let words = self.0.chunks(chunk).enumerate().filter(|(_, words)| words.iter().any(|word| *word != 0));
        words.flat_map(move |(index, words)| runs_of(words, index as u64 * limit))
    }
}

fn runs_of(words: &[u64], first: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (index, &word) in words.iter().enumerate() {
        let base = first + index as u64 * 64;
        let mut rest = word;
        while rest != 0 {
            let start = rest.trailing_zeros();
            let length = (rest >> start).trailing_ones();
            rest &= !(u64::MAX >> (64 - length) << start);
            let run = base + u64::from(start)..base + u64::from(start + length);
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_across_words_and_end_at_the_limit() {
        let mut set = PageSet::empty(512);
        set.insert_words(0, &[1 << 63 | 0b101, u64::MAX, 1]);
        set.insert_words(256, &[0b10]);
        assert_eq!(set.runs(256).collect::<Vec<_>>(), [0..1, 2..3, 63..129, 257..258]);
        assert_eq!(set.runs(64).collect::<Vec<_>>(), [0..1, 2..3, 63..64, 64..128, 128..129, 257..258]);
        set.fill();
        assert_eq!(set.runs(256).collect::<Vec<_>>(), [0..256, 256..512]);
        assert_eq!(PageSet::empty(512).runs(64).count(), 0);
    }
}
