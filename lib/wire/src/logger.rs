//! Logs on stderr, as text or as JSON lines.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};
use serde_json::json;

struct Logger {
    tool: &'static str,
    json: bool,
}

/// Sends the `log` crate's records to stderr. A second call changes nothing.
pub(crate) fn install(tool: &'static str, level: LevelFilter, json: bool) {
    if log::set_boxed_logger(Box::new(Logger { tool, json })).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // Ours only: the libraries below (HTTP, netlink) log on their own account.
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level().as_str().to_ascii_lowercase();
        let message = record.args().to_string();
        let line = if self.json {
            json!({"at": crate::timestamp(), "level": level, "tool": self.tool, "message": message})
                .to_string()
        } else {
            format!("{}: {level}: {message}", self.tool)
        };
        // Nobody is left to tell when stderr is gone.
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }

    fn flush(&self) {}
}
