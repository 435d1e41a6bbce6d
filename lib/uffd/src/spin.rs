//! Whether to look for another fault before going to sleep.
//!
//! Who waited for one page soon waits for another, and being woken costs more than looking. But a look that finds nothing is
//! time that somebody else could have had, and on a busy host the very guest that was answered, which then cannot ask again:
//! there most looks find nothing. So looking goes on only while most find something, which is tried again from time to time.

use serde_json::{Value, json};

/// After how many spins to judge.
const JUDGED: u32 = 64;

/// At least so many of them must have found a fault.
const FOUND: u32 = JUDGED * 3 / 4;

/// How many rounds of faults to do without, doubling each time that it does not pay.
const WITHOUT: u32 = 512;

/// The most of them.
const LONGEST: u32 = 1 << 13;

/// Judges.
#[derive(Debug)]
pub(crate) struct Spin {
    spins: u64,
    hits: u64,
    /// Since the last judgement.
    tried: u32,
    found: u32,
    /// Rounds still to do without.
    rest: u32,
    next_rest: u32,
}

impl Spin {
    pub fn new() -> Self {
        Self { spins: 0, hits: 0, tried: 0, found: 0, rest: 0, next_rest: WITHOUT }
    }

    /// Faults were answered. Whether to look for more.
    pub fn pays(&mut self) -> bool {
        self.rest = self.rest.saturating_sub(1);
        self.rest == 0
    }

    /// Whether looking has found a fault.
    pub fn ended(&mut self, found: bool) {
        self.spins += 1;
        self.hits += u64::from(found);
        self.tried += 1;
        self.found += u32::from(found);
        if self.tried == JUDGED {
            self.judge();
        }
    }

    fn judge(&mut self) {
        if self.found < FOUND {
            self.rest = self.next_rest;
            self.next_rest = (self.next_rest * 2).min(LONGEST);
        } else {
            self.next_rest = WITHOUT;
        }
        (self.tried, self.found) = (0, 0);
    }

    /// As fields of `stats`.
    pub fn fields(&self) -> Value {
        json!({"spins": self.spins, "spin_hits": self.hits})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many rounds of faults, of four of which `soon` are followed by another one soon. How many were looked for.
    fn rounds(spin: &mut Spin, count: u32, soon: u32) -> u64 {
        let before = spin.spins;
        for round in 0..count {
            if spin.pays() {
                spin.ended(round % 4 < soon);
            }
        }
        spin.spins - before
    }

    #[test]
    fn it_goes_on_while_three_of_four_looks_find_a_fault() {
        assert_eq!(rounds(&mut Spin::new(), 10_000, 3), 10_000);
        assert_eq!(rounds(&mut Spin::new(), 10_000, 4), 10_000);
    }

    #[test]
    fn it_ends_when_it_does_not_pay_and_is_tried_again_ever_more_rarely() {
        let mut spin = Spin::new();
        assert!(rounds(&mut spin, 1 << 12, 2) < 1 << 9, "{spin:?}");
        assert!(rounds(&mut spin, 1 << 18, 0) < 1 << 12, "{spin:?}");
        // When it pays again it is soon on again, and stays.
        rounds(&mut spin, LONGEST + 2 * JUDGED, 4);
        assert_eq!((spin.rest, spin.next_rest), (0, WITHOUT));
        assert_eq!(spin.fields()["spins"], spin.spins);
    }
}
