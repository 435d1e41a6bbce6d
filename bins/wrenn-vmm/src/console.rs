//! What the guest says on its serial port, bounded so that it cannot fill the host's disk.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::api::{Serial, TokenBucket};
use crate::metrics::METRICS;
use crate::output::Output;

/// The other end of the guest's serial port.
pub struct Console {
    output: Output,
    bucket: Option<Bucket>,
}

impl Console {
    /// As `PUT /serial` has it.
    ///
    /// # Errors
    /// What opening the file said.
    pub fn open(settings: &Serial) -> io::Result<Self> {
        let output = match &settings.serial_out_path {
            Some(path) => Output::open(path)?,
            None => Output::STDOUT,
        };
        let bucket = settings.rate_limiter.as_ref().and_then(|bucket| Bucket::new(bucket, Instant::now()));
        Ok(Self { output, bucket })
    }
}

impl Write for Console {
    /// Takes everything, and drops what is over the limit or what nobody takes: a guest is never kept waiting.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let allowed =
            self.bucket.as_mut().is_none_or(|bucket| bucket.take(bytes.len() as u64, Instant::now()));
        let written = if allowed { self.output.write(bytes) } else { 0 };
        METRICS.console_bytes.add(written as u64);
        METRICS.console_dropped_bytes.add((bytes.len() - written) as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Firecracker's token bucket: a burst that is used up once, and a bucket that is full at first and fills steadily.
#[derive(Debug)]
struct Bucket {
    burst: u64,
    size: u64,
    tokens: u64,
    refill: Duration,
    /// When `tokens` was right.
    at: Instant,
}

impl Bucket {
    /// `None` where there is no limit.
    fn new(settings: &TokenBucket, now: Instant) -> Option<Self> {
        let TokenBucket { size, one_time_burst, refill_time } = *settings;
        (size > 0 && refill_time > 0).then(|| Self {
            burst: one_time_burst.unwrap_or(0),
            size,
            tokens: size,
            refill: Duration::from_millis(refill_time),
            at: now,
        })
    }

    /// Takes so many if they are there.
    fn take(&mut self, count: u64, now: Instant) -> bool {
        self.fill(now);
        let from_burst = self.burst.min(count);
        let rest = count - from_burst;
        if rest > self.tokens {
            return false;
        }
        self.burst -= from_burst;
        self.tokens -= rest;
        true
    }

    fn fill(&mut self, now: Instant) {
        let (size, refill) = (u128::from(self.size), self.refill.as_nanos());
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let gained = size * passed / refill;
        if u128::from(self.tokens) + gained >= size {
            (self.tokens, self.at) = (self.size, now);
        } else if gained > 0 {
            self.tokens += gained as u64;
            // Only the time that these tokens took: the rest counts for the next.
            self.at += Duration::from_nanos((gained * refill / size) as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, burst: u64, refill_time: u64, now: Instant) -> Bucket {
        Bucket::new(&TokenBucket { size, one_time_burst: Some(burst), refill_time }, now).unwrap()
    }

    #[test]
    fn the_burst_goes_first_then_the_bucket_then_what_time_brings() {
        let start = Instant::now();
        let mut bucket = bucket(10, 5, 1000, start);
        assert!(bucket.take(5, start), "the burst");
        assert!(bucket.take(10, start), "the bucket");
        assert!(!bucket.take(1, start));
        assert!(!bucket.take(1, start + Duration::from_millis(99)));
        assert!(bucket.take(1, start + Duration::from_millis(100)));
        assert!(!bucket.take(1, start + Duration::from_millis(199)));
        assert!(bucket.take(10, start + Duration::from_secs(3600)), "never more than the bucket holds");
        assert!(!bucket.take(1, start + Duration::from_secs(3600)));
    }

    #[test]
    fn asking_often_gains_nothing_and_loses_nothing() {
        let start = Instant::now();
        let mut bucket = bucket(10, 0, 1000, start);
        assert!(bucket.take(10, start));
        let taken = (1..=1000).filter(|ms| bucket.take(1, start + Duration::from_millis(*ms))).count();
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_bucket_of_nothing_is_no_limit() {
        for (size, refill_time) in [(0, 100), (100, 0)] {
            assert!(
                Bucket::new(&TokenBucket { size, one_time_burst: None, refill_time }, Instant::now())
                    .is_none()
            );
        }
    }

    #[test]
    fn what_is_over_the_limit_is_dropped_and_the_guest_does_not_notice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let limit = TokenBucket { size: 4, one_time_burst: Some(3), refill_time: 3_600_000 };
        let settings = Serial { serial_out_path: Some(path.clone()), rate_limiter: Some(limit) };
        let mut console = Console::open(&settings).unwrap();
        for byte in b"abcdefghijkl" {
            console.write_all(&[*byte]).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"abcdefg");
    }
}
