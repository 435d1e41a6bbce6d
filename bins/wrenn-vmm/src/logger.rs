//! The program's log: a line for what happened, to the standard output or to a file.
//!
//! No place in the source writes more than ten lines in five seconds: a guest that provokes a warning cannot fill a disk
//! with it.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};
use serde::Deserialize;

use crate::metrics::METRICS;
use crate::output::Output;

/// Lines that a place may write in each [`WINDOW`].
const LINES: u32 = 10;
/// How long they are counted.
const WINDOW: Duration = Duration::from_secs(5);

/// How much is logged, in Firecracker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Level(LevelFilter);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let level = match text.to_ascii_lowercase().as_str() {
            "off" => LevelFilter::Off,
            "error" => LevelFilter::Error,
            "warn" | "warning" => LevelFilter::Warn,
            "info" => LevelFilter::Info,
            "debug" => LevelFilter::Debug,
            "trace" => LevelFilter::Trace,
            _ => {
                return Err(format!(
                    "a log level is Off, Error, Warning, Info, Debug or Trace, not {text:?}"
                ));
            }
        };
        Ok(Self(level))
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What can be set. What is `None` stays.
#[derive(Debug, Default)]
pub struct Settings {
    /// Where lines go.
    pub output: Option<Output>,
    /// How much.
    pub level: Option<Level>,
    /// Whether a line names its level.
    pub show_level: Option<bool>,
    /// Whether a line names its place in the source.
    pub show_origin: Option<bool>,
}

struct Logger {
    id: String,
    state: Mutex<State>,
}

struct State {
    output: Output,
    show_level: bool,
    show_origin: bool,
    /// By file and line: since when they are counted, and how many there were.
    places: HashMap<(&'static str, u32), (Instant, u32)>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts the log, at level Info on the standard output. `id` is in every line.
pub fn start(id: &str) {
    let state =
        State { output: Output::STDOUT, show_level: false, show_origin: false, places: HashMap::new() };
    let logger = LOGGER.get_or_init(|| Logger { id: id.into(), state: Mutex::new(state) });
    let _ = log::set_logger(logger);
    log::set_max_level(LevelFilter::Info);
}

/// Changes what is given.
pub fn set(settings: Settings) {
    if let Some(Level(level)) = settings.level {
        log::set_max_level(level);
    }
    let Some(logger) = LOGGER.get() else { return };
    let mut state = logger.state.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(output) = settings.output {
        state.output = output;
    }
    state.show_level = settings.show_level.unwrap_or(state.show_level);
    state.show_origin = settings.show_origin.unwrap_or(state.show_origin);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (record.file_static().unwrap_or_default(), record.line().unwrap_or_default());
        let Some(dropped) = state.admit(place, Instant::now()) else {
            METRICS.log_dropped_lines.add(1);
            return;
        };
        let line = state.line(&self.id, record, dropped);
        state.output.write(line.as_bytes());
    }

    fn flush(&self) {}
}

impl State {
    /// Whether this place may write a line, and how many it was kept from writing since its last.
    fn admit(&mut self, place: (&'static str, u32), now: Instant) -> Option<u32> {
        let (since, count) = self.places.entry(place).or_insert((now, 0));
        let mut dropped = 0;
        if now.duration_since(*since) >= WINDOW {
            dropped = count.saturating_sub(LINES);
            (*since, *count) = (now, 0);
        }
        *count += 1;
        (*count <= LINES).then_some(dropped)
    }

    fn line(&self, id: &str, record: &Record<'_>, dropped: u32) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let thread = std::thread::current();
        let mut line = format!("{} [{id}:{}", timestamp(now), thread.name().unwrap_or("?"));
        if self.show_level {
            line.push_str(&format!(":{}", record.level()));
        }
        if self.show_origin {
            let (file, number) = (record.file().unwrap_or("?"), record.line().unwrap_or_default());
            line.push_str(&format!(":{file}:{number}"));
        }
        line.push_str(&format!("] {}", record.args().to_string().replace('\n', "; ")));
        if dropped > 0 {
            line.push_str(&format!(" (after {dropped} such lines that were dropped)"));
        }
        line.push('\n');
        line
    }
}

/// Time since 1970 as `2026-11-22T05:10:33.123456Z`.
fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (day, second) = (seconds / 86_400, seconds % 86_400);
    // Days counted from 1 March of year 0, in eras of 400 years, where a leap day is the last of its year.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let micros = since_epoch.subsec_micros();
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_the_calendars() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_798_761_599, "2026-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(timestamp(Duration::from_secs(seconds)), format!("{expected}.000000Z"));
        }
    }

    #[test]
    fn a_place_writes_ten_lines_in_five_seconds_and_then_says_what_was_dropped() {
        let mut state =
            State { output: Output::STDOUT, show_level: false, show_origin: false, places: HashMap::new() };
        let start = Instant::now();
        let admitted = (0..25).filter(|_| state.admit(("a.rs", 1), start).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(state.admit(("a.rs", 2), start), Some(0), "another place");
        assert_eq!(state.admit(("a.rs", 1), start + WINDOW), Some(15));
        assert_eq!(state.admit(("a.rs", 1), start + WINDOW), Some(0));
    }

    #[test]
    fn a_line_is_one_line_and_names_who_wrote_it() {
        let state =
            State { output: Output::STDOUT, show_level: true, show_origin: true, places: HashMap::new() };
        let mut record = Record::builder();
        record.level(log::Level::Warn).file(Some("x.rs")).line(Some(7));
        let line = state.line("sb-1", &record.args(format_args!("one\ntwo")).build(), 3);
        assert!(line.ends_with(":WARN:x.rs:7] one; two (after 3 such lines that were dropped)\n"), "{line}");
        assert!(line.contains("Z [sb-1:"), "{line}");
    }

    #[test]
    fn levels_have_firecrackers_names() {
        for (name, level) in
            [("Warning", LevelFilter::Warn), ("warn", LevelFilter::Warn), ("OFF", LevelFilter::Off)]
        {
            assert_eq!(name.parse(), Ok(Level(level)));
        }
        assert!("Loud".parse::<Level>().is_err());
    }
}
