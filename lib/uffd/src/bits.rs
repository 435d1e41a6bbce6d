//! A set of page numbers: one bit a page, in a server's state.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use crate::state::Words;

/// Pages `0..len`, each in the set or not.
#[derive(Debug)]
pub(crate) struct Bits {
    words: Words,
    len: u64,
    count: u64,
}

impl Bits {
    /// The set of `len` pages that lies there.
    pub fn at(words: Words, len: u64) -> Self {
        let count = words.get().iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum();
        Self { words, len, count }
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether this page is in it.
    pub fn has(&self, page: u64) -> bool {
        self.words.get()[(page / 64) as usize].load(Relaxed) >> (page % 64) & 1 == 1
    }

    /// Puts these pages into it.
    pub fn insert(&mut self, pages: Range<u64>) {
        self.change(pages, |word, mask| word | mask);
    }

    /// Takes these pages out of it.
    pub fn remove(&mut self, pages: Range<u64>) {
        if self.count > 0 {
            self.change(pages, |word, mask| word & !mask);
        }
    }

    /// There is one writer: no need for one step from load to store.
    fn change(&mut self, pages: Range<u64>, change: impl Fn(u64, u64) -> u64) {
        debug_assert!(pages.end <= self.len);
        let mut at = pages.start;
        while at < pages.end {
            let stop = pages.end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
            let word = &self.words.get()[(at / 64) as usize];
            let before = word.load(Relaxed);
            let after = change(before, mask);
            word.store(after, Relaxed);
            self.count = self.count + u64::from(after.count_ones()) - u64::from(before.count_ones());
            at = stop;
        }
    }

    /// The first page from `from` on that is not in it.
    pub fn next_outside(&self, from: u64) -> Option<u64> {
        self.next(from, |word| !word)
    }

    /// The first page from `from` on that is in it.
    pub fn next_inside(&self, from: u64) -> Option<u64> {
        self.next(from, |word| word)
    }

    fn next(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let words = self.words.get();
        let mut index = (from / 64) as usize;
        let mut word = view(words.get(index)?.load(Relaxed)) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = view(words.get(index)?.load(Relaxed));
        }
        let page = index as u64 * 64 + u64::from(word.trailing_zeros());
        (page < self.len).then_some(page)
    }

    /// The maximal runs of pages in it, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_inside(from)?;
            let end = self.next_outside(start).unwrap_or(self.len);
            from = end;
            Some(start..end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;
    use crate::state::State;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_answers_as_a_set_of_numbers_does(
            len in 1u64..300,
            ranges in prop::collection::vec((0u64..300, 0u64..150, any::<bool>()), 0..8),
        ) {
            let region = Region { address: 4096, size: len * 4096, offset: 0, page_size: 4096 };
            let sets = || State::new(&[region]).unwrap().sets(&[region]).next().unwrap();
            let mut bits = Bits::at(sets().removed, len);
            let mut model = BTreeSet::new();
            for (start, length, into) in ranges {
                let range = start.min(len)..(start + length).min(len);
                if into {
                    bits.insert(range.clone());
                    model.extend(range);
                } else {
                    bits.remove(range.clone());
                    model.retain(|page| !range.contains(page));
                }
            }
            let bits = Bits::at(bits.words, len);
            prop_assert_eq!(bits.count(), model.len() as u64);
            for page in 0..len {
                prop_assert_eq!(bits.has(page), model.contains(&page));
                prop_assert_eq!(bits.next_inside(page), model.range(page..).next().copied());
                prop_assert_eq!(bits.next_outside(page), (page..len).find(|page| !model.contains(page)));
            }
            let flat: BTreeSet<u64> = bits.runs().flatten().collect();
            prop_assert_eq!(flat, model);
        }
    }
}
