//! `wrenn top`: what the running sandboxes use, as a table that is drawn again and again.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use store::Sandboxes;
use wire::{Call, Document, Error, Field, Host, Id, Input, Kind, LockOf, Reply, Type, Value, Verb};

use crate::sample::{self, Sample};
use crate::{columns, watch};

/// Seconds.
const INTERVAL: f64 = 2.0;

/// Of a terminal: to the first line, and clear what follows.
const CLEAR: &str = "\x1b[H\x1b[J";

const COLUMNS: [&str; 9] = ["ID", "TEMPLATE", "CPU%", "RESIDENT", "LAZY", "COW%", "RX/s", "TX/s", "CONN"];

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::may("interval", Type::Number, "seconds between two tables, 0.1 to 86400 (default 2)")
            .flag("interval"),
        Field::may(
            "count",
            Type::Integer,
            "so many tables, at least 1, then the end (default: until it is interrupted)",
        )
        .flag("count"),
    ],
    example: "wrenn top --count 1",
    input: Input::None,
    lock: LockOf::None,
    ..Verb::new("top", "what running sandboxes use, as a table", run)
};

fn run(call: &mut Call) -> Result<Reply, Error> {
    let interval = watch::interval(call.document.find("interval")?.unwrap_or(INTERVAL))?;
    let count: Option<u64> = call.document.find("count")?;
    if count == Some(0) {
        return Err(Error::field("count", "must be at least 1"));
    }
    let mut out = std::io::stdout();
    let clear = if out.is_terminal() { CLEAR } else { "" };
    // Rates need a moment to compare with.
    let mut before = running(call.host)?;
    for table in 1.. {
        if !wait(interval)? {
            break;
        }
        let now = running(call.host)?;
        let text = format!("{clear}{}\n", render(&before, &now));
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| {
            Error::new(Kind::Peer, "wrenn.output", "nobody reads the table").detail(error)
        })?;
        if Some(table) == count {
            break;
        }
        before = now;
    }
    Ok(Reply::Streamed(0))
}

/// A running sandbox.
struct Row {
    sample: Sample,
    template: String,
}

fn running(host: &Host) -> Result<Vec<Row>, Error> {
    let sandboxes = Sandboxes::of(host);
    let load = |id: Id| Some((id.clone(), sandboxes.load(&id).ok()?));
    let is_running = |document: &Document| document.get("state").is_some_and(|state| state == "running");
    let documents: Vec<(Id, Document)> =
        sandboxes.ids()?.into_iter().filter_map(load).filter(|(_, document)| is_running(document)).collect();
    let samples = sample::all(host, documents.iter().map(|(id, document)| (id, document)));
    let template = |id: &Id| {
        let document = documents.iter().find(|(other, _)| other == id).map(|(_, document)| document);
        document.and_then(|document| document.get("spec.template")).and_then(Value::as_str)
    };
    let row = |sample: Sample| Row { template: template(&sample.id).unwrap_or_default().to_owned(), sample };
    Ok(samples.into_iter().map(row).collect())
}

/// Waits for one interval. `false` when a signal says to stop.
fn wait(interval: Duration) -> Result<bool, Error> {
    let Some(signals) = sys::signals::fd() else { return Ok(true) };
    let told = sys::process::readable(&signals, interval);
    let failed = |error| Error::new(Kind::of_io(&error), "watch.kernel", "cannot wait").detail(error);
    told.map(|told| !told).map_err(failed)
}

/// The table of this moment, with rates since the one before.
fn render(before: &[Row], now: &[Row]) -> String {
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    for row in now {
        let earlier = before.iter().find(|other| other.sample.id == row.sample.id);
        lines.push(cells(row, earlier.map(|row| &row.sample)));
    }
    columns::render(&lines, 2)
}

fn cells(row: &Row, before: Option<&Sample>) -> [String; COLUMNS.len()] {
    let sample = &row.sample;
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".into());
    let rate = |of: &dyn Fn(&Sample) -> Option<u64>| {
        let before = before?;
        let seconds = sample.taken.duration_since(before.taken).as_secs_f64();
        // Less than before: a new VM, which has begun at 0.
        Some(of(sample)?.checked_sub(of(before)?)? as f64 / seconds.max(f64::EPSILON))
    };
    let cpu = rate(&|sample| Some(sample.cpu_ms)).map(|ms| format!("{:.1}", ms / 10.0));
    let bytes = |rate: Option<f64>| or_none(rate.map(|rate| size(rate as u64)));
    [
        sample.id.to_string(),
        row.template.clone(),
        or_none(cpu),
        size(sample.rss_bytes),
        or_none(sample.lazy_bytes.map(size)),
        or_none(sample.cow.map(|fill| format!("{:.1}", fill.percent()))),
        bytes(rate(&|sample| Some(sample.net?.rx_bytes))),
        bytes(rate(&|sample| Some(sample.net?.tx_bytes))),
        or_none(sample.connections.map(|count| count.to_string())),
    ]
}

/// In the largest unit of which there is at least one: `512`, `1.5K`, `64.0M`, `2.0G`.
fn size(bytes: u64) -> String {
    match ["", "K", "M", "G", "T"].iter().enumerate().rev().find(|(power, _)| bytes >> (10 * power) > 0) {
        None | Some((0, _)) => bytes.to_string(),
        Some((power, unit)) => {
            format!("{:.1}{unit}", bytes as f64 / f64::from(1024_u32.pow(power as u32 - 1)) / 1024.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use net::Traffic;

    use super::*;
    use crate::sample::Fill;

    fn row(id: &str, taken: Instant, cpu_ms: u64, rx_bytes: u64) -> Row {
        let sample = Sample {
            id: Id::new(id).unwrap(),
            taken,
            cpu_ms,
            rss_bytes: 64 << 20,
            lazy_bytes: Some(0),
            cow: Some(Fill { used_bytes: 1, total_bytes: 8, is_over: false }),
            net: Some(Traffic { rx_bytes, tx_bytes: 0 }),
            connections: Some(2),
        };
        Row { sample, template: "minimal".into() }
    }

    #[test]
    fn rates_are_between_two_samples_and_a_new_sandbox_has_none_yet() {
        let start = Instant::now();
        let later = start + Duration::from_secs(2);
        let text = render(
            &[row("old", start, 1000, 0), row("again", start, 5000, 9000)],
            &[row("old", later, 3000, 3072), row("again", later, 10, 5), row("new", later, 10, 5)],
        );
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], COLUMNS);
        assert_eq!(lines[1], ["old", "minimal", "100.0", "64.0M", "0", "12.5", "1.5K", "0", "2"]);
        assert_eq!(lines[2][2..], ["-", "64.0M", "0", "12.5", "-", "0", "2"], "its VM is another");
        assert_eq!(lines[3][2..], ["-", "64.0M", "0", "12.5", "-", "-", "2"]);
        let second: Vec<_> =
            text.lines().map(|line| line.find("TEMPLATE").or(line.find("minimal"))).collect();
        assert_eq!(second, [Some(7); 4], "aligned: {text}");
    }

    #[test]
    fn sizes_have_the_largest_unit_of_which_there_is_one() {
        for (bytes, shown) in
            [(0, "0"), (1023, "1023"), (1024, "1.0K"), (1536, "1.5K"), (64 << 20, "64.0M"), (5 << 40, "5.0T")]
        {
            assert_eq!(size(bytes), shown);
        }
    }
}
