//! Lines of the log, which is a page server's and a guardian's stderr.

use std::fmt::Display;
use std::io::Write;

/// Writes a line. `eprintln!` would panic where the disk is full or the reader gone: no reason to leave a VMM alone.
pub(crate) fn note(text: impl Display) {
    let line = format!("{} {text}\n", wire::timestamp());
    let _ = std::io::stderr().write_all(line.as_bytes());
}
