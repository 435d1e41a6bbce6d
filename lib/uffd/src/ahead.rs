//! How many discarded pages one fault fills. A guest comes back to its pages here and there, and each costs memory; a VMM
//! that dumps reads all of them in order, and would wait for each.

/// The most pages at once: 2 MiB of 4 KiB pages.
const MOST: u64 = 512;

/// Follows the faults on discarded pages.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// Area and page that a reader in order asks for next.
    next: Option<(usize, u64)>,
    pages: u64,
}

impl Ahead {
    /// How many pages a fault on this one is to fill: one, and twice as many as the last time when it goes on where that
    /// ended.
    pub fn pages(&mut self, area: usize, page: u64) -> u64 {
        self.pages = if self.next == Some((area, page)) { (self.pages * 2).min(MOST) } else { 1 };
        self.pages
    }

    /// So many were filled from this page on.
    pub fn filled(&mut self, area: usize, page: u64, pages: u64) {
        self.next = Some((area, page + pages));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_in_order_fill_ever_more_and_others_fill_one() {
        let mut ahead = Ahead::default();
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
}
