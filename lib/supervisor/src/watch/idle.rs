//! How long a sandbox has been idle.
//!
//! `last_active_at` is a time of day, and a clock that is set must not pause every sandbox of a host at once. So the time of
//! day is looked at only once, when a sandbox is taken under watch: idle time before that is what the document says, and
//! never more than the VM's age, nor less than nothing. From then on a change of `last_active_at` is what counts, whatever
//! it is changed to, and a clock that nobody sets measures the time since.

use std::time::{Duration, Instant};

/// The idle time of one running sandbox.
#[derive(Debug)]
pub struct Idle {
    noted: Option<String>,
    since: Instant,
}

impl Idle {
    /// Of a sandbox that is taken under watch now, at `now_ms` of the day's clock, whose VM is this old.
    pub fn adopted(noted: Option<String>, age: Duration, now_ms: u64) -> Self {
        let told = noted.as_deref().and_then(wire::parse_timestamp);
        let idle = match told {
            Some(at) => Duration::from_millis(now_ms.saturating_sub(at)).min(age),
            None => Duration::ZERO,
        };
        let now = Instant::now();
        Self { noted, since: now.checked_sub(idle).unwrap_or(now) }
    }

    /// The document says this now. A change is activity.
    pub fn see(&mut self, noted: Option<String>) {
        if noted != self.noted {
            self.noted = noted;
            self.since = Instant::now();
        }
    }

    /// There is activity.
    pub fn end(&mut self) {
        self.since = Instant::now();
    }

    /// What the document said last.
    pub fn noted(&self) -> Option<&str> {
        self.noted.as_deref()
    }

    /// For how long.
    pub fn time(&self) -> Duration {
        self.since.elapsed()
    }

    /// When it will have lasted `timeout_s`; 0 is never.
    pub fn lasts(&self, timeout_s: u64) -> Option<Instant> {
        (timeout_s > 0).then(|| self.since.checked_add(Duration::from_secs(timeout_s))).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_309_323_456;
    const HOUR: Duration = Duration::from_secs(3600);

    fn idle(noted: &str, age: Duration) -> u64 {
        Idle::adopted(Some(noted.into()), age, NOW).time().as_secs()
    }

    #[test]
    fn what_the_document_says_counts_when_a_sandbox_is_taken_under_watch() {
        assert_eq!(idle("2026-11-22T01:01:33.456Z", HOUR), 30);
        assert_eq!(Idle::adopted(None, HOUR, NOW).time().as_secs(), 0, "nothing is known");
        assert_eq!(idle("yesterday", HOUR), 0);
    }

    #[test]
    fn a_clock_that_was_set_makes_nobody_older_than_its_vm_nor_active_in_the_future() {
        assert_eq!(idle("1970-01-01T00:00:00.000Z", Duration::from_secs(5)), 5);
        assert_eq!(idle("2036-11-22T01:01:33.456Z", HOUR), 0);
    }

    #[test]
    fn afterwards_a_change_is_activity_whatever_it_is_changed_to() {
        let mut idle = Idle::adopted(Some("2026-11-22T01:01:33.456Z".into()), HOUR, NOW);
        idle.see(Some("2026-11-22T01:01:33.456Z".into()));
        assert_eq!(idle.time().as_secs(), 30, "the same");
        idle.see(Some("1970-01-01T00:00:00.000Z".into()));
        assert_eq!(idle.time().as_secs(), 0, "set back by years, and active now");
    }

    #[test]
    fn a_time_to_live_of_0_never_ends() {
        let idle = Idle::adopted(None, HOUR, NOW);
        assert_eq!(idle.lasts(0), None);
        assert!(idle.lasts(10).unwrap() > Instant::now() + Duration::from_secs(9));
        assert_eq!(idle.lasts(u64::MAX), None, "as good as never");
    }
}
