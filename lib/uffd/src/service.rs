//! Serving one VMM: when to answer, when to load ahead, when to wait.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snap::WorkingSet;
use sys::process::{Process, readable};

use crate::channel::object;
use crate::config::Config;
use crate::replay::Replay;
use crate::spin::Spin;
use crate::workingset::{Recorder, Writing};
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

/// How many pieces of a working set may be loaded at once: small ones cost little more than the call.
const PIECES: usize = 16;

/// How often to look whether a working set is written.
const WRITING: Duration = Duration::from_millis(20);

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
    later: Option<Option<WorkingSet>>,
    prefetch: Prefetch,
    writing: Option<Writing>,
    loading: bool,
    batch: u64,
    spin: Spin,
    pause: Option<Duration>,
    over: bool,
}

/// An event to tell, with its fields.
pub(crate) type Event = (&'static str, Value);

impl Service {
    /// Begins, with a warning when a recording cannot be used.
    pub fn start(config: &Config, engine: Engine, peer: Process, exit: OwnedFd) -> (Self, Option<String>) {
        let wanted = config.prefetch != Prefetch::None;
        let image = config.source.dir().zip(engine.build());
        let (set, warning) =
            match image.filter(|_| wanted).map(|(dir, build)| WorkingSet::read_for(dir, build)) {
                Some(Err(what)) => (None, Some(format!("the recorded working set is not used: {what}"))),
                Some(Ok(set)) => (set, None),
                None => (None, None),
            };
        let recorder =
            config.record.zip(image).map(|(window, (dir, build))| Recorder::new(dir, build, window));
        let mut service = Self {
            engine,
            peer,
            exit,
            connected: Instant::now(),
            later: None,
            prefetch: config.prefetch,
            writing: None,
            loading: false,
            batch: SMALL_BATCH,
            spin: Spin::new(),
            pause: None,
            over: false,
        };
        match recorder {
            // Pages loaded ahead are not asked for: first record, then load.
            Some(recorder) => {
                service.engine.record(recorder);
                service.later = Some(set);
            }
            None => service.load(set),
        }
        (service, warning)
    }

    /// Begins to load ahead.
    fn load(&mut self, set: Option<WorkingSet>) {
        let likely = set.as_ref().map(WorkingSet::likely).unwrap_or_default();
        self.engine.plan(self.prefetch, likely.ranges().collect());
        self.loading = self.prefetch != Prefetch::None;
        if let Some(set) = set {
            self.engine.replay(Replay::new(likely, set.runs));
        }
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
        events.extend(self.engine.poisoned().iter().map(|page| ("poisoned", page.to_json())));
        if !asked && !self.loading {
            self.pause = None;
        }
        if asked && self.stopped(served) || exited {
            self.over |= exited;
            return Ok(events);
        }
        if self.engine.recorder().is_some()
            && self.engine.recorded(Instant::now()).map(|it| self.keep(it)).is_some()
        {
            self.begin_loading();
        }
        events.extend(self.writing.take_if(|writing| writing.is_done()).map(Writing::event));
        if self.loading {
            self.batch = if asked { SMALL_BATCH } else { (self.batch * 2).min(LARGE_BATCH) };
            let step = self.load_batch()?;
            if let Some(page) = self.engine.lost_ahead() {
                let mut warning = page.to_json();
                warning["message"] =
                    "the image cannot be read; such pages wait until somebody asks for them".into();
                events.push(("warning", warning));
            }
            if !self.stopped(step) && step == Step::Done {
                self.loading = false;
                let ms = wire::ms(self.connected.elapsed());
                let pages = self.engine.counts().prefetched;
                let complete = self.engine.missing() == 0;
                events.push(("prefetched", json!({"pages": pages, "ms": ms, "complete": complete})));
            }
        }
        Ok(events)
    }

    /// Loads about a batch. The pieces of a working set are small, and several make one.
    fn load_batch(&mut self) -> Result<Step, Error> {
        let cost = |engine: &Engine| engine.counts().copied_bytes + engine.counts().zeroed_bytes / 16;
        let end = cost(&self.engine) + self.batch;
        let mut step = Step::More;
        for _ in 0..PIECES {
            match end.saturating_sub(cost(&self.engine)) {
                0 => break,
                left => step = self.engine.prefetch(left)?,
            }
            if step != Step::More {
                break;
            }
        }
        Ok(step)
    }

    /// Has the recording written.
    fn keep(&mut self, recorder: Recorder) {
        self.writing = recorder.write(self.engine.latency());
    }

    /// What waited for the recording.
    fn begin_loading(&mut self) {
        if let Some(set) = self.later.take() {
            self.load(set);
        }
    }

    /// Ends a recording that is under way, because what the VMM asks for now is no guest's doing: a dump reads everything.
    pub fn forget_recording(&mut self) -> Option<Event> {
        self.engine.take_recorder()?;
        self.begin_loading();
        Some(("warning", json!({"message": "the recording is given up: the VM was dumped meanwhile"})))
    }

    /// Keeps a recording that is under way, and waits until it is written.
    pub fn end_recording(&mut self) -> Option<Event> {
        if let Some(recorder) = self.engine.take_recorder() {
            self.keep(recorder);
        }
        self.writing.take().map(Writing::event)
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
        let ends = ends.map(|end| end.saturating_duration_since(Instant::now()));
        ends.or(self.writing.as_ref().map(|_| WRITING))
    }

    /// Whether the VMM still runs.
    pub fn lives(&self) -> bool {
        !self.over && readable(&self.exit, Duration::ZERO).is_ok_and(|ended| !ended)
    }

    /// Ends the service, and says what became of the VMM: `gone`; `released`, living on with all its memory; `abandoned`,
    /// to hang at the next page that is missing.
    pub fn leave(&mut self) -> Result<&'static str, Error> {
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

    /// Ends the service for another server to go on with it.
    pub fn put_down(&mut self) -> Result<Option<Event>, Error> {
        let told = self.end_recording();
        self.engine.drain()?;
        Ok(told)
    }

    /// What was done so far.
    pub fn stats(&mut self) -> Value {
        let counts = self.engine.counts();
        let mut stats = object(
            json!({"state": "serving", "peer_pid": self.peer.pid, "regions": self.engine.regions(),
               "bytes": self.engine.bytes(), "faults": counts.faults, "copied": counts.copied,
               "zeroed": counts.zeroed, "prefetched": counts.prefetched, "removed": self.engine.removed_pages(),
               "poisoned": self.engine.poisoned_pages(), "missing_bytes": self.engine.missing(), "complete": self.engine.missing() == 0,
               "prefetch": {"of": self.prefetch.word(), "bytes": counts.prefetched_bytes,
                            "done": !self.loading && self.later.is_none()}}),
        );
        stats.extend(object(self.engine.seen()));
        stats.extend(object(self.spin.fields()));
        Value::Object(stats)
    }
}
