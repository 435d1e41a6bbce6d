//! When something that did not work is tried again.

use std::time::{Duration, Instant};

/// After a failure it is tried again after one interval, then two, four, …, but no longer than this.
const LONGEST_DELAY: Duration = Duration::from_secs(900);

/// Failures in a row, and until when nothing is tried.
#[derive(Debug)]
pub struct Retry {
    pub attempts: u32,
    pub not_before: Instant,
}

impl Retry {
    /// Notes a failure.
    pub fn failed(&mut self, interval: Duration) {
        let delay = interval.saturating_mul(1 << self.attempts.min(20));
        self.attempts += 1;
        self.later(delay.min(LONGEST_DELAY.max(interval)));
    }

    /// It cannot be tried now.
    pub fn later(&mut self, delay: Duration) {
        self.not_before = Instant::now() + delay;
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 0, not_before: Instant::now() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_later_and_later() {
        let mut retry = Retry::default();
        let delays: Vec<f64> = (0..9)
            .map(|_| {
                retry.failed(Duration::from_secs(10));
                retry.not_before.saturating_duration_since(Instant::now()).as_secs_f64().round()
            })
            .collect();
        assert_eq!(delays, [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 900.0, 900.0]);
        retry.failed(Duration::from_secs(3600));
        assert!(retry.not_before > Instant::now() + Duration::from_secs(3590), "never sooner than a round");
    }
}
