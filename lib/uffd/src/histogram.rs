//! How long faults wait: an HDR histogram, so that the rare long ones are counted as exactly as the many short.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// What is longer counts as this: nobody waits for a page so long and lives.
const LONGEST: Duration = Duration::from_secs(60);

/// Latencies, each within 1 % (two digits), in 14 KiB. Adding one takes a few nanoseconds and no memory.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u32>);

impl Default for Latencies {
    fn default() -> Self {
        let bounds = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 2);
        Self(bounds.expect("bounds that the crate takes"))
    }
}

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    /// In microseconds; `null` before the first.
    pub fn to_json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        let us = |ns: u64| (ns as f64 / 10.0).round() / 100.0;
        let at = |share: f64| us(self.0.value_at_quantile(share));
        json!({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": us(self.0.max())})
    }

    /// The one in the middle.
    pub fn median(&self) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn before_the_first_fault_nothing_is_said() {
        assert_eq!(Latencies::default().to_json(), Value::Null);
    }

    #[test]
    fn what_takes_for_ever_is_counted_all_the_same() {
        let mut latencies = Latencies::default();
        latencies.add(Duration::from_secs(3600));
        latencies.add(Duration::ZERO);
        assert!(latencies.to_json()["max"].as_f64().unwrap() >= 60e6);
    }

    proptest! {
        #[test]
        fn it_says_what_the_sorted_list_says_within_a_hundredth(
            mut list in prop::collection::vec(1u64..50_000_000_000, 1..300)
        ) {
            let mut latencies = Latencies::default();
            list.iter().for_each(|ns| latencies.add(Duration::from_nanos(*ns)));
            list.sort_unstable();
            let said = latencies.to_json();
            for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)] {
                let rank = (share * list.len() as f64).ceil() as usize;
                let exact = list[rank.max(1) - 1] as f64 / 1000.0;
                let said = said[name].as_f64().unwrap();
                prop_assert!((said - exact).abs() <= exact * 0.01 + 0.011, "{name}: {said}, not {exact}");
            }
        }
    }
}
