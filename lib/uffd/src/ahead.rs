//! How many pages one fault fills. Whoever comes back to pages here and there wants that one; whoever reads them in order
//! wants those that follow, and would wait for each.

/// How many readers are followed: a guest has several processors, each in a place of its own.
const READERS: usize = 4;

/// Follows faults.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// The one seen last comes first.
    readers: [Reader; READERS],
    most: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    /// Area and page that it asks for next if it reads in order.
    next: Option<(usize, u64)>,
    pages: u64,
}

impl Ahead {
    /// A fault fills at most so many pages.
    pub fn new(most: u64) -> Self {
        Self { readers: Default::default(), most }
    }

    /// How many pages a fault on this one is to fill: one, and twice as many as the last time when it goes on where that
    /// ended.
    pub fn pages(&mut self, area: usize, page: u64) -> u64 {
        let known = self.readers.iter().position(|reader| reader.next == Some((area, page)));
        // A new one takes the place of the one that was not seen for longest.
        self.readers[..=known.unwrap_or(READERS - 1)].rotate_right(1);
        let reader = &mut self.readers[0];
        reader.pages = if known.is_some() { (reader.pages * 2).min(self.most) } else { 1 };
        reader.pages
    }

    /// So many were filled from this page on, the one that was asked about last.
    pub fn filled(&mut self, area: usize, page: u64, pages: u64) {
        self.readers[0].next = Some((area, page + pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_order_fill_ever_more_and_others_fill_one() {
        let mut ahead = Ahead::new(512);
        let mut page = 10;
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 512] {
            let pages = ahead.pages(0, page);
            assert_eq!(pages, expected);
            ahead.filled(0, page, pages);
            page += pages;
        }
        assert_eq!(ahead.pages(1, page), 1, "another area");
        ahead.filled(1, page, 1);
        assert_eq!(ahead.pages(1, page), 1, "the same page again");
        // The kernel stopped short: the reader goes on where it did.
        ahead.filled(1, page, 1);
        assert_eq!(ahead.pages(1, page + 1), 2);
        ahead.filled(1, page + 1, 1);
        assert_eq!(ahead.pages(1, page + 2), 4);
    }

    #[test]
    fn a_reader_in_order_is_followed_whoever_else_jumps_about() {
        let mut ahead = Ahead::new(16);
        let (mut one, mut other) = (0, 1_000_000);
        for round in 0..10 {
            for reader in [&mut one, &mut other] {
                let pages = ahead.pages(0, *reader);
                assert_eq!(pages, (1 << round).min(16));
                ahead.filled(0, *reader, pages);
                *reader += pages;
            }
            for jump in 0..2 {
                let page = 5_000_000 + 1000 * (2 * round + jump);
                assert_eq!(ahead.pages(0, page), 1);
                ahead.filled(0, page, 1);
            }
        }
    }
}
