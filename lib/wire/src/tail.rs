//! The end of a program's log, to say in an error why it ended.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// How much of a log an error shows.
const BYTES: u64 = 4 << 10;
const LINES: usize = 12;

/// The last lines of a log, of what it holds from byte `start` on, without control characters. A log that cannot be read
/// has none.
pub fn last_lines(log: &Path, start: u64) -> Vec<String> {
    let read = || {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(BYTES))))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.chars().filter(|c| !c.is_control()).collect::<String>())
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_those_since_the_start_and_no_more_than_a_dozen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        assert_eq!(last_lines(&log, 0), [""; 0]);
        let old = "another life\n";
        let text: String = (0..2000).map(|n| format!("line {n}\x1b\r\n\n")).collect();
        std::fs::write(&log, format!("{old}new\n")).unwrap();
        assert_eq!(last_lines(&log, old.len() as u64), ["new"]);
        std::fs::write(&log, text).unwrap();
        let last: Vec<_> = (1988..2000).map(|n| format!("line {n}")).collect();
        assert_eq!(last_lines(&log, 0), last);
    }
}
