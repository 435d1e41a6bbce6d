//! A set of page numbers: one bit a page.

use std::ops::Range;

/// Pages `0..len`, each in the set or not.
#[derive(Debug, Clone)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: u64,
    count: u64,
}

impl Bits {
    /// The empty set over `len` pages.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, count: 0 }
    }

    /// How many pages are in it.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether this page is in it.
    pub fn has(&self, page: u64) -> bool {
        self.words[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    /// Puts these pages into it.
    pub fn insert(&mut self, pages: Range<u64>) {
        debug_assert!(pages.end <= self.len);
        let mut at = pages.start;
        while at < pages.end {
            let stop = pages.end.min((at / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
            let word = &mut self.words[(at / 64) as usize];
            self.count += u64::from((mask & !*word).count_ones());
            *word |= mask;
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
        let mut index = (from / 64) as usize;
        let mut word = view(*self.words.get(index)?) & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = view(*self.words.get(index)?);
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
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_answers_as_a_set_of_numbers_does(
            len in 1u64..300,
            ranges in prop::collection::vec((0u64..300, 0u64..150), 0..8),
        ) {
            let mut bits = Bits::new(len);
            let mut model = BTreeSet::new();
            for (start, length) in ranges {
                let range = start.min(len)..(start + length).min(len);
                bits.insert(range.clone());
                model.extend(range);
            }
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
