//! `wrenn-uffd report`: what a trace tells, in numbers and as a picture.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};
use wire::{Call, Error, Field, Reply, Type, Verb, ms};

use crate::Error as Failure;
use crate::histogram::Latencies;
pub use crate::timeline::draw;
use crate::trace::{HEADER, Kind, MOST, RECORD, Record, Trace};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("trace", Type::Path, "the file that serve wrote"),
        Field::may("svg", Type::Path, "a picture to write; one that is there is replaced"),
        Field::may("until_ms", Type::Number, "look at so much from the beginning only (default all)"),
    ],
    reply: &[Field::need(
        "report",
        Type::Object,
        "memory_bytes, page_size, connected_at, full, faults (number, by kind, pages, writes, first and last ms, share in the first 100 ms and 1 s, latency), ahead, around, removed",
    )],
    example: "wrenn-uffd report trace=/tmp/uffd.trace svg=/tmp/faults.svg --pretty",
    ..Verb::new("report", "summarise a trace, and draw it", run)
};

fn run(call: &mut Call) -> Result<Reply, Error> {
    let fields = call.fields();
    let path: PathBuf = fields.need("trace")?;
    let svg: Option<PathBuf> = fields.find("svg")?;
    let until: Option<f64> = fields.find("until_ms")?;
    if until.is_some_and(|until| !(until > 0.0 && until < 1e12)) {
        return Err(Error::field("until_ms", "must be more than 0"));
    }
    let mut trace = read(&path)?;
    if let Some(until) = until.map(|ms| Duration::from_secs_f64(ms / 1e3)) {
        trace.records.retain(|record| record.at < until);
    }
    let report = summary(&trace);
    if let Some(svg) = svg {
        snap::svg::write(&svg, &draw(&trace), call.undo)?;
    }
    call.answer("report", report);
    Ok(Reply::Document)
}

/// Reads a trace from its file.
fn read(path: &Path) -> Result<Trace, Failure> {
    let longest = HEADER as u64 + (MOST + 1) * RECORD as u64;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(longest).read_to_end(&mut bytes))
        .map_err(Failure::io("read", path))?;
    Trace::parse(&bytes).map_err(|fault| Failure::Trace { path: path.to_owned(), fault })
}

/// What a trace tells, in numbers.
pub fn summary(trace: &Trace) -> Value {
    let header = &trace.header;
    let of = |wanted: fn(Kind) -> bool| trace.records.iter().filter(move |record| wanted(record.kind));
    let faults = || of(Kind::is_fault);
    let mut latencies = Latencies::default();
    faults().for_each(|fault| latencies.add(fault.latency));
    let count = faults().count();
    let pages: HashSet<u64> = faults().map(|fault| fault.offset / header.page_size).collect();
    let by_kind: Map<_, _> = Kind::ALL
        .into_iter()
        .filter(|kind| kind.is_fault())
        .map(|kind| (kind.word().to_owned(), faults().filter(|fault| fault.kind == kind).count().into()))
        .collect();
    let within = |limit: u64| {
        let early = faults().filter(|fault| fault.at < Duration::from_millis(limit)).count();
        (count > 0).then(|| (early as f64 / count as f64 * 10_000.0).round() / 10_000.0)
    };
    let extra = |fault: &Record| fault.length.saturating_sub(header.page_size);
    let around = total(faults().map(extra));
    json!({
        "memory_bytes": header.size, "page_size": header.page_size, "pid": header.pid,
        "connected_at": wire::timestamp_at(header.connected.as_millis() as u64), "full": trace.full,
        "faults": {
            "count": count, "by_kind": by_kind, "pages": pages.len(),
            "writes": faults().filter(|fault| fault.write).count(),
            "first_ms": faults().map(|fault| fault.at).min().map(ms),
            "last_ms": faults().map(|fault| fault.at).max().map(ms),
            "within_100_ms": within(100), "within_1_s": within(1000),
            "latency_us": latencies.to_json(),
        },
        "around_bytes": around,
        "ahead": {"recorded": loaded(of(|kind| kind == Kind::Replay)), "rest": loaded(of(|kind| kind == Kind::Prefetch))},
        "removed": {"count": of(|kind| kind == Kind::Remove).count(),
                    "bytes": total(of(|kind| kind == Kind::Remove).map(|record| record.length))},
    })
}

/// The sum, as far as 64 bits go: a file may say of every record that it is all of a memory of any size.
fn total(lengths: impl Iterator<Item = u64>) -> u64 {
    lengths.fold(0, u64::saturating_add)
}

/// What was loaded ahead: in how many pieces, and when.
fn loaded<'a>(records: impl Iterator<Item = &'a Record>) -> Value {
    let records: Vec<_> = records.collect();
    json!({"count": records.len(), "bytes": total(records.iter().map(|record| record.length)),
           "first_ms": records.iter().map(|record| record.at).min().map(ms),
           "last_ms": records.iter().map(|record| record.at + record.latency).max().map(ms)})
}

#[cfg(test)]
#[path = "tests/report.rs"]
mod tests;
