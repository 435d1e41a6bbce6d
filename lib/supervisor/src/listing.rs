//! `wrenn ls` on a terminal.

use wire::{Document, Value};

use crate::columns;

const COLUMNS: [&str; 8] = ["ID", "STATE", "TEMPLATE", "VMM", "CPUS", "MEMORY", "AGE", "IDLE"];
/// Of these, so many are names; the others are numbers.
const NAMES: usize = 4;

/// The reply of `ls` as a table, unless JSON is asked for.
pub fn show(reply: &Document) -> Option<String> {
    if reply.get("json").and_then(Value::as_bool) == Some(true) {
        return None;
    }
    let now = wire::now_ms();
    let rows = reply.get("sandboxes")?.as_array()?.iter().map(|sandbox| cells(sandbox, now));
    let lines: Vec<_> = std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect();
    Some(columns::render(&lines, NAMES))
}

fn cells(sandbox: &Value, now: u64) -> [String; COLUMNS.len()] {
    let text = |path: &str| sandbox.pointer(path).and_then(Value::as_str).map(plain);
    let number = |path: &str| sandbox.pointer(path).and_then(Value::as_u64);
    let since = |path: &str| Some(span(now.saturating_sub(wire::parse_timestamp(&text(path)?)?) / 1000));
    let state = text("/state").or_else(|| Some(format!("error: {}", text("/error/kind")?)));
    let cells = [
        text("/id"),
        state.clone(),
        text("/spec/template"),
        text("/vm/vmm").or_else(|| text("/spec/vmm")),
        number("/spec/vcpus").map(|count| count.to_string()),
        number("/spec/memory_mib").map(mebibytes),
        since("/created_at"),
        // What does not run has nothing to be idle with.
        since("/last_active_at").filter(|_| state.as_deref() == Some("running")),
    ];
    cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned()))
}

/// A terminal is not steered by what a document says.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `256M`, `2G`, `1.5G`.
fn mebibytes(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib}M"),
        whole if whole % 1024 == 0 => format!("{}G", whole / 1024),
        part => format!("{:.1}G", part as f64 / 1024.0),
    }
}

/// Seconds in the two largest units: `42s`, `5m03s`, `2h05m`, `3d04h`.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::json;

    #[test]
    fn spans_and_sizes_are_told_in_the_largest_units() {
        for (seconds, told) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (303, "5m03s"),
            (7500, "2h05m"),
            (86_399, "23h59m"),
            (273_600, "3d04h"),
        ] {
            assert_eq!(span(seconds), told);
        }
        for (mib, told) in [(32, "32M"), (1023, "1023M"), (1024, "1G"), (1536, "1.5G"), (4096, "4G")] {
            assert_eq!(mebibytes(mib), told);
        }
    }

    #[test]
    fn a_sandbox_is_one_line_whatever_its_document_says() {
        let whole = json!({"id": "one", "state": "running", "created_at": "1970-01-01T00:00:00.000Z",
            "last_active_at": "1970-01-01T01:00:00.000Z",
            "spec": {"template": "team/warm", "vmm": "wrenn-vmm", "vcpus": 2, "memory_mib": 2048}});
        let hour = 3_600_000;
        assert_eq!(
            cells(&whole, 2 * hour),
            ["one", "running", "team/warm", "wrenn-vmm", "2", "2G", "2h00m", "1h00m"]
        );
        let damaged = json!({"id": "two", "error": {"kind": "corrupt"}});
        assert_eq!(cells(&damaged, hour), ["two", "error: corrupt", "-", "-", "-", "-", "-", "-"]);
        let odd = json!({"id": "three\n\u{1b}[2J", "state": "paused", "spec": 7, "last_active_at": "1970-01-01T00:00:00Z"});
        assert_eq!(cells(&odd, hour), ["three??[2J", "paused", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn the_table_is_aligned_and_json_is_json() {
        let mut reply = Document::new();
        reply.set(
            "sandboxes",
            json!([{"id": "a-long-name", "state": "paused"}, {"id": "b", "state": "running"}]),
        );
        let table = show(&reply).unwrap();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        let column = lines[0].find("STATE").unwrap();
        assert!(
            lines[1][column..].starts_with("paused ") && lines[2][column..].starts_with("running "),
            "{table}"
        );
        reply.set("json", true);
        assert_eq!(show(&reply), None);
    }
}
