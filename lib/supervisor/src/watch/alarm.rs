//! When a disk is nearly full: told once, when it gets there.

/// Percent.
const LIMIT: f64 = 80.0;

/// Whether a sandbox's disk has been reported.
#[derive(Debug, Default)]
pub struct Alarm {
    raised: bool,
}

impl Alarm {
    /// Whether this fill, in percent, is news: past the limit, and the last one was not.
    pub fn is_news(&mut self, percent: f64) -> bool {
        let raised = std::mem::replace(&mut self.raised, percent >= LIMIT);
        self.raised && !raised
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_raised_once_for_each_time_that_the_limit_is_passed() {
        let mut alarm = Alarm::default();
        let told: Vec<bool> =
            [10.0, 79.99, 80.0, 95.0, 100.0, 79.0, 81.0].map(|percent| alarm.is_news(percent)).into();
        assert_eq!(told, [false, false, true, false, false, false, true]);
    }
}
