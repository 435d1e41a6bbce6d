//! What a server has seen: counts, how long faults waited, and the trace if one is wanted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::histogram::Latencies;
use crate::state::{Counter, State};
use crate::trace::{Kind, Record, Writer};

/// What a server has done so far. Pages are those of the region they lie in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Page faults read.
    pub faults: u64,
    /// Pages filled from the image.
    pub copied: u64,
    /// Pages filled with zeros.
    pub zeroed: u64,
    /// Of these two, those that were loaded ahead, asked for by nobody.
    pub prefetched: u64,
    /// The same in bytes.
    pub prefetched_bytes: u64,
    /// Of these two, those that came along with a fault on a page before them.
    pub around: u64,
    /// Bytes filled from the image.
    pub copied_bytes: u64,
    /// Bytes filled with zeros.
    pub zeroed_bytes: u64,
    /// Faults on pages that were there before: the VMM had discarded them, or two threads asked for one page.
    pub rereads: u64,
}

/// A page fault that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub address: u64,
    pub write: bool,
    /// When the kernel's message was read.
    pub read: Instant,
}

/// Looks on while the engine works.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Has the counts.
    state: State,
    /// As long as this server lives.
    pub latencies: Latencies,
    trace: Option<Writer>,
    connected: Instant,
}

impl Seen {
    /// Counts there.
    pub fn of(state: &State) -> Self {
        Self { state: state.clone(), latencies: Latencies::default(), trace: None, connected: Instant::now() }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        let count = |counter| self.state.count(counter);
        Counts {
            faults: count(Counter::Faults),
            copied: count(Counter::Copied),
            zeroed: count(Counter::Zeroed),
            prefetched: count(Counter::Prefetched),
            prefetched_bytes: count(Counter::PrefetchedBytes),
            around: count(Counter::Around),
            copied_bytes: count(Counter::CopiedBytes),
            zeroed_bytes: count(Counter::ZeroedBytes),
            rereads: count(Counter::Rereads),
        }
    }

    /// Writes down everything from now on, which is when the VMM connected.
    pub fn trace(&mut self, trace: Writer) {
        self.connected = Instant::now();
        self.trace = Some(trace);
    }

    /// A fault was answered just now, with `length` bytes at this offset.
    pub fn answered(&mut self, fault: &Fault, kind: Kind, offset: u64, length: u64) {
        let latency = fault.read.elapsed();
        self.latencies.add(latency);
        self.state.answered(kind);
        self.state.add(Counter::Rereads, u64::from(matches!(kind, Kind::Refill | Kind::Exists)));
        self.note(fault.read, Record { latency, ..record(kind, offset, length, fault.write) });
    }

    /// When something begins that only a trace wants to know of.
    pub fn begin(&self) -> Option<Instant> {
        self.trace.as_ref().map(|_| Instant::now())
    }

    /// What began then is done: pages were loaded ahead.
    pub fn loaded(&mut self, began: Option<Instant>, kind: Kind, offset: u64, length: u64) {
        if let Some(began) = began.filter(|_| length > 0) {
            self.note(began, Record { latency: began.elapsed(), ..record(kind, offset, length, false) });
        }
    }

    /// The VMM discarded this.
    pub fn removed(&mut self, offset: u64, length: u64) {
        if self.trace.is_some() && length > 0 {
            self.note(Instant::now(), record(Kind::Remove, offset, length, false));
        }
    }

    fn note(&mut self, began: Instant, record: Record) {
        if let Some(trace) = &mut self.trace {
            trace.push(Record { at: began.saturating_duration_since(self.connected), ..record });
        }
    }

    /// What it has seen, as fields of `stats`. What is in the trace is in its file when this returns.
    pub fn fields(&mut self) -> Value {
        let Counts { copied_bytes, zeroed_bytes, around, rereads, .. } = self.counts();
        let faults = Kind::ALL.into_iter().filter(|kind| kind.is_fault());
        let answers: serde_json::Map<_, _> =
            faults.map(|kind| (kind.word().to_owned(), self.state.answers(kind).into())).collect();
        let mut fields = json!({"latency_us": self.latencies.to_json(), "answers": answers, "rereads": rereads,
                                "around": around, "copied_bytes": copied_bytes, "zeroed_bytes": zeroed_bytes});
        if let Some(trace) = &mut self.trace {
            trace.flush();
            fields["trace_records"] = trace.records().into();
        }
        fields
    }
}

fn record(kind: Kind, offset: u64, length: u64, write: bool) -> Record {
    Record { at: Duration::ZERO, offset, length, latency: Duration::ZERO, kind, write }
}
