//! Counts of what happened, written as a line of JSON when asked for.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::output::Output;

/// A count since the start.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    const fn zero() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}

macro_rules! metrics {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// All counts.
        #[derive(Debug)]
        pub struct Metrics { $($(#[$about])* pub $name: Count,)* }

        /// The program's counts.
        pub static METRICS: Metrics = Metrics { $($name: Count::zero(),)* };

        impl Metrics {
            fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.0.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

metrics! {
    /// Requests that were HTTP.
    api_requests,
    /// Those that were refused or failed.
    api_faults,
    /// Bytes of the guest's console that were written.
    console_bytes,
    /// Those that were over the limit, or that nobody took.
    console_dropped_bytes,
    /// Lines of the log that were over the limit of their place in the source.
    log_dropped_lines,
    /// Times the machine was paused.
    pauses,
    /// Times it was resumed.
    resumes,
    /// Snapshots written.
    snapshots,
    /// Snapshots that failed.
    snapshot_failures,
    /// Bytes of memory written into snapshots.
    snapshot_bytes,
    /// Snapshots loaded.
    loads,
}

static OUTPUT: Mutex<Option<Output>> = Mutex::new(None);

/// From here on metrics go there.
pub fn write_to(output: Output) {
    *OUTPUT.lock().unwrap_or_else(PoisonError::into_inner) = Some(output);
}

/// Writes a line, if there is somewhere to write to.
pub fn flush() {
    if let Some(output) = &*OUTPUT.lock().unwrap_or_else(PoisonError::into_inner) {
        output.write(line().as_bytes());
    }
}

fn line() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = format!("{{\"utc_timestamp_ms\":{}", now.as_millis());
    for (name, value) in METRICS.named() {
        let _ = write!(line, ",\"{name}\":{value}");
    }
    line + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_of_all_counts() {
        METRICS.pauses.add(2);
        let line = line();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        assert!(value["pauses"].as_u64().unwrap() >= 2, "{line}");
        assert!(value["utc_timestamp_ms"].as_u64().unwrap() > 1_600_000_000_000, "{line}");
        assert_eq!(value["snapshots"], 0);
    }
}
