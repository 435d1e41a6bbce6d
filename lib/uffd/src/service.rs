//! Serving one VMM: when to answer, when to load ahead, when to wait.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sys::process::{Process, readable};

use crate::config::Config;
use crate::spin::Spin;
use crate::workingset::{self, Recorder};
use crate::{Engine, Error, Prefetch, Step};

/// How much is loaded at once while faults come in: they wait as long as this takes, some 20 µs.
const SMALL_BATCH: u64 = 64 << 10;

/// How much is loaded at once when nobody asks for anything.
const LARGE_BATCH: u64 = 2 << 20;

/// While a discard is under way nothing can be filled, and the kernel does not tell when it is over: try again after this
/// long, doubling up to [`LONGEST_PAUSE`]. The discard itself arrives as an event and is not waited for in this way.
const FIRST_PAUSE: Duration = Duration::from_micros(10);

/// The longest wait between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// How often to look for another fault before sleeping: some 5 µs.
const LOOKS: u32 = 16;

/// How many rounds of faults may be answered so before anything else is looked at.
const ANSWERS: u32 = 64;

/// A VMM being served.
pub(crate) struct Service {
    pub engine: Engine,
    /// Whose memory it is.
    pub peer: Process,
    /// Readable when that process has ended.
    pub exit: OwnedFd,
    connected: Instant,
    /// What to load once nothing is recorded any more.
    later: Option<(Prefetch, Vec<std::ops::Range<u64>>)>,
    loading: bool,
    batch: u64,
    spin: Spin,
    pause: Option<Duration>,
    over: bool,
}

/// An event to tell, with its fields.
type Event = (&'static str, Value);

impl Service {
    /// Begins, with a warning when a recording cannot be used.
    pub fn start(
        config: &Config,
        mut engine: Engine,
        peer: Process,
        exit: OwnedFd,
    ) -> (Self, Option<String>) {
        let dir = config.source.dir().filter(|_| config.prefetch != Prefetch::None);
        let (recorded, warning) = match dir.map_or(Ok(Vec::new()), workingset::read) {
            Ok(recorded) => (recorded, None),
            Err(what) => (Vec::new(), Some(format!("the recorded working set is not used: {what}"))),
        };
        let mut later = None;
        match config.source.dir().filter(|_| config.record) {
            // Pages loaded ahead are not asked for: first record, then load.
            Some(dir) => {
                engine.record(Recorder::new(dir));
                later = Some((config.prefetch, recorded));
            }
            None => engine.plan(config.prefetch, recorded),
        }
        let loading = config.prefetch != Prefetch::None && later.is_none();
        let connected = Instant::now();
        let service = Self {
            engine,
            peer,
            exit,
            connected,
            later,
            loading,
            batch: SMALL_BATCH,
            spin: Spin::new(),
            pause: None,
            over: false,
        };
        (service, warning)
    }

    /// Does what there is to do: reads events if there are any, answers faults, and loads one batch ahead if nobody waits.
    pub fn turn(&mut self, readable: bool, exited: bool) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        if readable {
            self.engine.drain()?;
        }
        let asked = self.engine.is_asked();
        let mut served = self.engine.serve()?;
        if asked && !self.loading {
            served = self.linger(served)?;
        }
        if self.stopped(served) || exited {
            self.over |= exited;
            return Ok(events);
        }
        if self.engine.recorder().is_some()
            && let Some(recorder) = self.engine.recorded(Instant::now())
        {
            events.push(written(recorder));
            if let Some((prefetch, recorded)) = self.later.take() {
                self.loading = prefetch != Prefetch::None;
                self.engine.plan(prefetch, recorded);
            }
        }
        if self.loading {
            self.batch = if asked { SMALL_BATCH } else { (self.batch * 2).min(LARGE_BATCH) };
            let step = self.engine.prefetch(self.batch)?;
            if !self.stopped(step) && step == Step::Done {
                self.loading = false;
                let ms = self.connected.elapsed().as_micros() as f64 / 1000.0;
                let pages = self.engine.counts().prefetched;
                let complete = self.engine.missing() == 0;
                events.push(("prefetched", json!({"pages": pages, "ms": ms, "complete": complete})));
            }
        }
        Ok(events)
    }

    /// Looks for the next fault a few more times before going to sleep, as long as that pays. It ends, however many faults
    /// come: others want an answer too.
    fn linger(&mut self, mut served: Step) -> Result<Step, Error> {
        let mut answers = ANSWERS;
        while served == Step::Done && answers > 0 && self.spin.pays() {
            let mut looks = LOOKS;
            while looks > 0 && !self.engine.is_asked() {
                self.engine.drain()?;
                looks -= 1;
            }
            self.spin.ended(self.engine.is_asked());
            if !self.engine.is_asked() {
                break;
            }
            answers -= 1;
            served = self.engine.serve()?;
        }
        Ok(served)
    }

    /// Notes how a step ended, and says whether the turn ends with it.
    fn stopped(&mut self, step: Step) -> bool {
        self.pause = match (step, self.pause) {
            (Step::Again, None) => Some(FIRST_PAUSE),
            (Step::Again, Some(pause)) => Some((pause * 2).min(LONGEST_PAUSE)),
            _ => None,
        };
        self.over |= step == Step::Gone;
        matches!(step, Step::Again | Step::Gone)
    }

    /// Whether the VMM is gone.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// How long to wait for events. `None`: until one comes.
    pub fn patience(&self) -> Option<Duration> {
        if self.pause.is_some() {
            return self.pause;
        }
        if self.loading {
            return Some(Duration::ZERO);
        }
        let ends = self.engine.recorder().and_then(Recorder::ends);
        ends.map(|end| end.saturating_duration_since(Instant::now()))
    }

    /// Whether the VMM still runs.
    pub fn lives(&self) -> bool {
        !self.over && readable(&self.exit, Duration::ZERO).is_ok_and(|ended| !ended)
    }

    /// Ends the service, and says what became of the VMM: `gone`; `released`, living on with all its memory; `abandoned`,
    /// to hang at the next page that is missing.
    pub fn leave(&mut self) -> Result<&'static str, Error> {
        if let Some(recorder) = self.engine.take_recorder() {
            let _ = written(recorder);
        }
        if !self.lives() {
            return Ok("gone");
        }
        self.engine.drain()?;
        if self.engine.missing() > 0 {
            return Ok("abandoned");
        }
        self.engine.release()?;
        Ok("released")
    }

    /// What was done so far.
    pub fn stats(&mut self) -> Value {
        let counts = self.engine.counts();
        let mut stats = json!({"state": "serving", "peer_pid": self.peer.pid, "regions": self.engine.regions(),
               "bytes": self.engine.bytes(), "faults": counts.faults, "copied": counts.copied,
               "zeroed": counts.zeroed, "prefetched": counts.prefetched, "removed": self.engine.removed_pages(),
               "missing_bytes": self.engine.missing(), "complete": self.engine.missing() == 0});
        if let (Value::Object(stats), Value::Object(seen)) = (&mut stats, self.engine.seen()) {
            stats.extend(seen);
        }
        if let (Value::Object(stats), Value::Object(spin)) = (&mut stats, self.spin.fields()) {
            stats.extend(spin);
        }
        stats
    }
}

/// A recording that cannot be written is no reason to let a VM down.
fn written(recorder: Recorder) -> Event {
    let pages = recorder.pages();
    match recorder.write() {
        Ok(()) => ("recorded", json!({ "pages": pages })),
        Err(error) => ("warning", json!({"message": wire::Error::from(error).to_string()})),
    }
}
