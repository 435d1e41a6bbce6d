//! What the watch knows, and what it does about what it sees.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use store::Sandboxes;
use wire::{Call, Document, Error, Id, Value, json};

use super::expire;
use super::eyes::{Eyes, Seen};
use super::life::{Life, Which};
use super::metrics::Metrics;
use super::retry::Retry;
use super::work::{Job, News, Outcome, Work};
use crate::sample::Sample;

/// States that an operation passes through: what becomes of the sandbox is for that operation to say.
const PASSING: [&str; 5] = ["creating", "resuming", "pausing", "snapshotting", "destroying"];

/// Events that are counted for the metrics.
const COUNTED: [&str; 6] = ["paused", "pause_failed", "removed", "remove_failed", "failed", "alarm"];

/// All sandboxes of a root, and who works on them.
pub struct Watch<'a, 'b> {
    call: &'a mut Call<'b>,
    interval: Duration,
    metrics: Option<PathBuf>,
    once: bool,
    eyes: Eyes,
    work: Work,
    sandboxes: BTreeMap<Id, Entry>,
    /// When samples are taken next, and whether any have been.
    next: Instant,
    sampled: bool,
    counts: BTreeMap<&'static str, u64>,
}

/// One sandbox.
#[derive(Default)]
struct Entry {
    /// As it was last read; empty while it has none.
    document: Document,
    /// Its VM, while it has one.
    life: Option<Life>,
    /// Whether a thread is at work on it, or about to be.
    busy: bool,
    retry: Retry,
}

/// What can be due.
enum Due {
    Expire,
    Fail,
    Settle,
}

impl Entry {
    fn state(&self) -> &str {
        self.document.get("state").and_then(Value::as_str).unwrap_or_default()
    }

    /// What is to be done about it, and when.
    fn due(&self) -> Option<(Instant, Due)> {
        if self.busy {
            return None;
        }
        let (due, what) = if self.is_abandoned() {
            (self.retry.not_before, Due::Settle)
        } else {
            let life = self.life.as_ref().filter(|_| self.state() == "running")?;
            match life.over {
                true => (self.retry.not_before, Due::Fail),
                false => (life.expires(&self.document)?, Due::Expire),
            }
        };
        Some((due.max(self.retry.not_before), what))
    }

    /// Whether the operation that is noted as being at work on it was killed.
    fn is_abandoned(&self) -> bool {
        self.document.get("op").is_some()
            && self.document.process("op").is_ok_and(|process| !process.is_alive())
    }

    /// It is in use.
    fn used(&mut self) {
        self.life.iter_mut().for_each(|life| life.idle.end());
        self.retry = Retry::default();
    }
}

impl<'a, 'b> Watch<'a, 'b> {
    pub fn new(
        call: &'a mut Call<'b>,
        interval: Duration,
        metrics: Option<PathBuf>,
        once: bool,
    ) -> Result<Self, Error> {
        Ok(Self {
            eyes: Eyes::new(call.host)?,
            work: Work::new(call.host)?,
            call,
            interval,
            metrics,
            once,
            sandboxes: BTreeMap::new(),
            next: Instant::now(),
            sampled: false,
            counts: COUNTED.map(|event| (event, 0)).into(),
        })
    }

    /// Takes up every sandbox there is.
    pub fn begin(&mut self) -> Result<(), Error> {
        self.read_all()?;
        let running = self.sandboxes.values().filter(|entry| entry.life.is_some()).count();
        self.emit("ready", json!({"sandboxes": self.sandboxes.len(), "running": running}))
    }

    /// Watches until a signal says to stop; with `--once`, until all that is due is done.
    pub fn until_told(&mut self) -> Result<(), Error> {
        loop {
            self.start_what_is_due();
            if self.once && self.sampled && self.work.is_idle() {
                return Ok(());
            }
            let (seen, ended) = self.look()?;
            if seen.signal {
                return Ok(());
            }
            // Documents first: they say whose doing an end was.
            for id in seen.changed {
                self.read(&id)?;
            }
            for (id, which) in ended {
                let life = self.sandboxes.get_mut(&id).and_then(|entry| entry.life.as_mut());
                life.into_iter().for_each(|life| life.ended(which));
            }
            if seen.news {
                for news in self.work.news() {
                    self.hear(news)?;
                }
            }
            if Instant::now() >= self.next {
                self.next = Instant::now() + self.interval;
                self.read_all()?;
                self.work.sample(self.running());
            } else if seen.lost {
                self.read_all()?;
            }
        }
    }

    /// Waits for the work that has begun. A pause that a signal asks to end is given back or completed.
    pub fn finish(&mut self) {
        for news in self.work.finish() {
            if let Err(error) = self.hear(news) {
                log::info!("{error}");
            }
        }
    }

    /// Waits until there is something to see. Gives the processes that have ended, too.
    fn look(&mut self) -> Result<(Seen, Vec<(Id, Which)>), Error> {
        let due = self.sandboxes.values().filter_map(|entry| Some(entry.due()?.0)).min();
        let until = due.map_or(self.next, |due| due.min(self.next));
        let watched: Vec<(&Id, Which, BorrowedFd)> = self
            .sandboxes
            .iter()
            .filter_map(|(id, entry)| Some((id, entry.life.as_ref()?)))
            .flat_map(|(id, life)| life.descriptors().map(move |(which, fd)| (id, which, fd)))
            .collect();
        let fds: Vec<BorrowedFd> = watched.iter().map(|(.., fd)| *fd).collect();
        let seen = self.eyes.wait(&fds, self.work.bell.as_fd(), sys::signals::fd(), until)?;
        let ended = seen.ended.iter().map(|index| (watched[*index].0.clone(), watched[*index].1)).collect();
        Ok((seen, ended))
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        for (id, entry) in &mut self.sandboxes {
            let Some((_, what)) = entry.due().filter(|(due, _)| *due <= now) else { continue };
            let job = match what {
                Due::Expire => Job::Expire(Box::new(entry.document.clone())),
                Due::Fail => Job::Fail,
                Due::Settle => Job::Settle,
            };
            entry.busy = true;
            self.work.give(id.clone(), job);
        }
    }

    fn read_all(&mut self) -> Result<(), Error> {
        let ids = Sandboxes::of(self.call.host).ids()?;
        for id in ids.iter().filter(|id| !self.sandboxes.contains_key(*id)) {
            self.eyes.add(id);
        }
        let known: Vec<Id> = self.sandboxes.keys().filter(|id| !ids.contains(id)).cloned().collect();
        for id in ids.iter().chain(&known) {
            self.read(id)?;
        }
        Ok(())
    }

    /// Reads a sandbox's document and takes its VM up, or lets it go.
    fn read(&mut self, id: &Id) -> Result<(), Error> {
        match Sandboxes::of(self.call.host).load(id) {
            Ok(document) => self.sandboxes.entry(id.clone()).or_default().document = document,
            Err(store::Error::NoSandbox { .. }) => return self.is_no_more(id),
            Err(error) => {
                log::warn!("{id}: {error}");
                return Ok(());
            }
        }
        let Some(entry) = self.sandboxes.get_mut(id) else { return Ok(()) };
        // What a thread of our own does, it tells when it is done.
        if entry.busy || PASSING.contains(&entry.state()) {
            return Ok(());
        }
        if entry.state() != "running" {
            return self.has_settled(id);
        }
        match &mut entry.life {
            // One that is over and yet runs is looked at anew: its page server may go on without a guardian.
            Some(life) if !life.over && life.is_of(&entry.document) => {
                if life.see(&entry.document) {
                    entry.retry = Retry::default();
                }
            }
            life => match Life::adopt(&entry.document) {
                Ok(adopted) => {
                    let lives = !adopted.over;
                    *life = Some(adopted);
                    if lives {
                        entry.retry = Retry::default();
                        self.emit("adopted", json!({"id": id.as_str()}))?;
                    }
                }
                Err(error) => log::warn!("{id}: it is not watched: {error}"),
            },
        }
        Ok(())
    }

    /// It runs no more, and not by our doing, or is `failed` by whoever's.
    fn has_settled(&mut self, id: &Id) -> Result<(), Error> {
        let Some(entry) = self.sandboxes.get_mut(id) else { return Ok(()) };
        if entry.life.take().is_none() {
            return Ok(());
        }
        if entry.state() != "failed" {
            let state = entry.state().to_owned();
            return self.emit("gone", json!({"id": id.as_str(), "state": state}));
        }
        let told = |field| entry.document.get(&format!("failure.{field}")).cloned().unwrap_or_default();
        let event = json!({"id": id.as_str(), "reason": told("reason"), "log": told("log")});
        self.emit("failed", event)
    }

    /// There is no document. While a thread of our own is at work on it, that thread will tell.
    fn is_no_more(&mut self, id: &Id) -> Result<(), Error> {
        match self.sandboxes.get(id) {
            Some(entry) if !entry.busy => {}
            _ => return Ok(()),
        }
        match self.sandboxes.remove(id).and_then(|entry| entry.life) {
            Some(_) => self.emit("gone", json!({"id": id.as_str(), "state": "removed"})),
            None => Ok(()),
        }
    }

    fn hear(&mut self, news: News) -> Result<(), Error> {
        match news {
            News::Sampled(samples) => self.take(&samples),
            News::Expired(id) => {
                let life = self.sandboxes.get(&id).and_then(|entry| entry.life.as_ref());
                let idle_s = life.map_or(0, |life| life.idle.time().as_secs());
                self.emit("expired", json!({"id": id.as_str(), "idle_s": idle_s}))
            }
            News::Done(_, id, outcome) => self.is_done(&id, outcome),
        }
    }

    /// A thread has done with a sandbox.
    fn is_done(&mut self, id: &Id, outcome: Outcome) -> Result<(), Error> {
        let entry = self.sandboxes.entry(id.clone()).or_default();
        entry.busy = false;
        let told = match outcome {
            Outcome::Paused | Outcome::Removed => {
                entry.life = None;
                let event = if matches!(outcome, Outcome::Paused) { "paused" } else { "removed" };
                self.emit(event, json!({"id": id.as_str()}))
            }
            Outcome::Settled(report) => report.into_iter().try_for_each(|entry| self.emit("settled", entry)),
            Outcome::Active => {
                entry.used();
                Ok(())
            }
            Outcome::Busy => {
                entry.retry.later(self.interval);
                Ok(())
            }
            Outcome::NotReclaimed(error) => {
                log::warn!("{id}: {error}");
                entry.retry.failed(self.interval);
                Ok(())
            }
            Outcome::NotExpired(error) => {
                entry.retry.failed(self.interval);
                let (attempt, destroys) = (entry.retry.attempts, expire::destroys(&entry.document));
                let event = if destroys { "remove_failed" } else { "pause_failed" };
                let error = error.to_json("wrenn", "watch");
                self.emit(event, json!({"id": id.as_str(), "attempt": attempt, "error": error}))
            }
        };
        told.and(self.read(id))
    }

    /// A round of samples has been taken.
    fn take(&mut self, samples: &[Sample]) -> Result<(), Error> {
        self.sampled = true;
        for sample in samples {
            let Some(entry) = self.sandboxes.get_mut(&sample.id) else { continue };
            if sample.connections.is_some_and(|count| count > 0) {
                entry.used();
            }
            let Some(life) = &mut entry.life else { continue };
            let percent = sample.cow.map(|fill| fill.percent());
            let alarm = percent.filter(|percent| life.alarm.is_news(*percent));
            self.emit("sample", sample.to_json())?;
            if let Some(percent) = alarm {
                let event = json!({"id": sample.id.as_str(), "what": "cow", "percent": percent});
                self.emit("alarm", event)?;
            }
        }
        if let Some(path) = &self.metrics
            && let Err(error) = self.as_metrics(samples).write(path)
        {
            log::warn!("{error}");
        }
        Ok(())
    }

    fn as_metrics<'s>(&'s self, samples: &'s [Sample]) -> Metrics<'s> {
        let mut metrics = Metrics { events: self.counts.clone(), ..Metrics::default() };
        for entry in self.sandboxes.values().filter(|entry| !entry.state().is_empty()) {
            *metrics.states.entry(entry.state().to_owned()).or_default() += 1;
        }
        let of = |sample: &'s Sample| {
            let entry = self.sandboxes.get(&sample.id).filter(|entry| entry.life.is_some())?;
            let template = entry.document.get("spec.template").and_then(Value::as_str);
            Some((sample, template.unwrap_or_default()))
        };
        metrics.samples = samples.iter().filter_map(of).collect();
        metrics
    }

    /// What there is to take samples of.
    fn running(&self) -> Vec<(Id, Document)> {
        let lives = |entry: &Entry| entry.life.as_ref().is_some_and(|life| !life.over);
        let running = self.sandboxes.iter().filter(|(_, entry)| lives(entry));
        running.map(|(id, entry)| (id.clone(), entry.document.clone())).collect()
    }

    fn emit(&mut self, event: &'static str, fields: Value) -> Result<(), Error> {
        self.counts.entry(event).and_modify(|count| *count += 1);
        self.call.emit(event, fields)
    }
}
