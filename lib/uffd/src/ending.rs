//! How a server that is gone has ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use wire::Document;

use crate::Error;

/// Whether the server that the document names, and that is gone, has died, rather than left because its VMM did. Its
/// guardian knows, and has told once it is done: then the log is gone, or holds the failure. It is waited for at most
/// `limit`; without an answer the server counts as having left.
///
/// # Errors
/// What reading the log said; `invalid` when the document's section is none.
pub fn died(document: &Document, limit: Duration) -> Result<bool, wire::Error> {
    let Some(control) = document.find::<PathBuf>("uffd.control")? else { return Ok(false) };
    let log = control.with_extension("log");
    let dir = log.parent().unwrap_or(&log);
    let failed = |errno: Errno| Error::io("watch", dir)(errno.into());
    let news = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
    match news.add_watch(dir, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE) {
        Err(Errno::ENOENT) => return Ok(false),
        done => done.map_err(failed)?,
    };
    let deadline = Instant::now() + limit;
    loop {
        match std::fs::read(&log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            read => {
                if tells_a_failure(&read.map_err(Error::io("read", &log))?) {
                    return Ok(true);
                }
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if !sys::process::readable(&news, left).map_err(Error::io("watch", dir))? {
            return Ok(false);
        }
        let _ = news.read_events();
    }
}

/// A line of the log is a time, an event and its fields.
fn tells_a_failure(log: &[u8]) -> bool {
    let text = String::from_utf8_lossy(log);
    let mut events = text.lines().filter_map(|line| line.split(' ').nth(1));
    events.any(|event| matches!(event, "failed" | "vmm_stopped"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const QUICK: Duration = Duration::from_millis(20);

    #[test]
    fn a_server_has_died_when_its_guardian_says_so_and_has_left_when_its_log_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("uffd.log");
        let mut document = Document::new();
        assert!(!died(&document, QUICK).unwrap(), "there was none");
        document.set("uffd.control", dir.path().join("uffd.ctl").to_string_lossy().into_owned());
        assert!(!died(&document, QUICK).unwrap(), "the log is gone");
        let connected = "2026-11-22T01:02:03.456Z connected {\"peer_pid\":7,\"note\":\"failed\"}\n";
        fs::write(&log, connected).unwrap();
        assert!(!died(&document, QUICK).unwrap(), "nobody says");
        let said = format!("{connected}2026-11-22T01:02:04.456Z vmm_stopped {{}}\n");
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| died(&document, Duration::from_secs(20)));
            fs::write(&log, said).unwrap();
            assert!(asked.join().unwrap().unwrap(), "it is waited for");
        });
        fs::write(&log, connected).unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| died(&document, Duration::from_secs(20)));
            fs::remove_file(&log).unwrap();
            assert!(!asked.join().unwrap().unwrap());
        });
    }
}
