//! How far long work is, for who waits for it at a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nothing is said about work that takes no longer than this, and nothing more often.
const OFTEN: Duration = Duration::from_millis(250);

/// A line on stderr that says how many bytes are done. There is none where stderr is no terminal; it goes when the work is
/// done. Threads that share in the work may share it.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: Option<u64>,
    done: AtomicU64,
    started: Instant,
    /// When the line is due again; nothing where nobody sees it.
    due: Option<Mutex<Instant>>,
}

impl Progress {
    /// Begins to tell of `what`, a participle, of so many bytes, if that is known.
    pub fn bytes(what: &'static str, total: Option<u64>) -> Self {
        let started = Instant::now();
        let due = std::io::stderr().is_terminal().then(|| Mutex::new(started + OFTEN));
        Self { what, total, done: AtomicU64::new(0), started, due }
    }

    /// So many more bytes are done.
    pub fn add(&self, bytes: u64) {
        let Some(due) = &self.due else { return };
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Whoever finds it taken leaves the line to the other thread.
        let Ok(mut due) = due.try_lock() else { return };
        let now = Instant::now();
        if now >= *due {
            *due = now + OFTEN;
            let line = line(self.what, done, self.total, now - self.started);
            let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.due.is_some() && self.started.elapsed() >= OFTEN {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let mib = |bytes: u64| bytes >> 20;
    let speed = mib((done as f64 / elapsed.as_secs_f64().max(0.001)) as u64);
    match total.filter(|total| *total > 0) {
        Some(total) => {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!("{what}: {} of {} MiB, {percent} %, {speed} MiB/s", mib(done), mib(total))
        }
        None => format!("{what}: {} MiB, {speed} MiB/s", mib(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_is_done_and_how_fast() {
        let second = Duration::from_secs(2);
        assert_eq!(
            line("packing", 512 << 20, Some(2 << 30), second),
            "packing: 512 of 2048 MiB, 25 %, 256 MiB/s"
        );
        assert_eq!(line("packing", 512 << 20, None, second), "packing: 512 MiB, 256 MiB/s");
        assert_eq!(line("packing", 0, Some(0), Duration::ZERO), "packing: 0 MiB, 0 MiB/s");
    }
}
