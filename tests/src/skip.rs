//! A test that cannot run here reports itself, never passes in silence.

use std::fmt::Display;
use std::io::Write;

/// Says that the test whose thread this is did not run and why: `SKIPPED: name: reason` on stderr, and appended to the file
/// that `WRENN_TEST_SKIPS` names, from which the runner prints them at its end.
pub fn here(reason: impl Display) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    let line = format!("SKIPPED: {name}: {reason}\n");
    // Past the test harness, which swallows the output of tests that pass.
    let _ = std::io::stderr().lock().write_all(line.as_bytes());
    let Some(path) = std::env::var_os("WRENN_TEST_SKIPS") else { return };
    let appended = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = appended {
        panic!("{name} cannot report that it was skipped ({reason}): {}: {error}", path.display());
    }
}
