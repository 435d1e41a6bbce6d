//! Whether to look for another fault before going to sleep.
//!
//! Who waited for one page soon waits for another, and being woken costs more than looking. But a look that finds nothing is
//! time that a guest could have had, and on a busy host it is the waiting guest's own. So looking goes on only while it
//! pays, which is tried again from time to time.

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

/// After how many spins to judge.
const JUDGED: u32 = 64;

/// At least so many of them must have found a fault.
const FOUND: u32 = JUDGED / 4;

/// At most so many times may somebody else have wanted the processor meanwhile.
const PUSHED: i64 = JUDGED as i64 / 8;

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
    pushed: i64,
    /// Rounds still to do without.
    rest: u32,
    next_rest: u32,
}

impl Spin {
    pub fn new() -> Self {
        Self { spins: 0, hits: 0, tried: 0, found: 0, pushed: pushed_aside(), rest: 0, next_rest: WITHOUT }
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
            let now = pushed_aside();
            self.judge(now - self.pushed);
            self.pushed = now;
        }
    }

    /// `pushed`: how often this thread had to make way for another one meanwhile.
    fn judge(&mut self, pushed: i64) {
        if self.found < FOUND || pushed > PUSHED {
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

/// How often this thread had to leave the processor for another one although it had more to do.
fn pushed_aside() -> i64 {
    getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| usage.involuntary_context_switches())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many rounds of faults of which each `every`th is followed by another one soon. How many were looked for.
    fn rounds(spin: &mut Spin, count: u32, every: u32) -> u64 {
        let before = spin.spins;
        for round in 0..count {
            if spin.pays() {
                spin.ended(round % every == 0);
            }
        }
        spin.spins - before
    }

    fn calm() -> Spin {
        // As if nobody else wanted the processor, whatever else this machine does.
        Spin { pushed: i64::MAX, ..Spin::new() }
    }

    #[test]
    fn it_goes_on_while_a_quarter_of_the_looks_find_a_fault() {
        let mut spin = calm();
        assert_eq!(rounds(&mut spin, 63, 4), 63);
        spin.judge(0);
        assert_eq!(spin.rest, 0);
        assert_eq!(rounds(&mut spin, 63, 1), 63);
    }

    #[test]
    fn it_ends_when_it_does_not_pay_and_is_tried_again_ever_more_rarely() {
        let mut spin = calm();
        let share = |spin: &mut Spin, count| rounds(spin, count, 100) as f64 / f64::from(count);
        assert!(share(&mut spin, 1 << 12) < 0.1, "{spin:?}");
        assert!(share(&mut spin, 1 << 18) < 0.02, "{spin:?}");
        // When it pays again it is soon on again.
        rounds(&mut spin, LONGEST + JUDGED, 1);
        spin.judge(0);
        assert_eq!((spin.rest, spin.next_rest), (0, WITHOUT));
    }

    #[test]
    fn it_ends_when_others_want_the_processor() {
        let mut spin = calm();
        (spin.tried, spin.found) = (JUDGED, JUDGED);
        spin.judge(PUSHED + 1);
        assert!(!spin.pays());
    }
}
