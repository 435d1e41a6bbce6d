//! The slow work of the watch, on threads of its own: a crash is noticed while a pause runs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use wire::{Document, Error, Host, Id, Kind, Options, Value};

use super::{cause, expire};
use crate::sample::{self, Sample};
use crate::sandbox::Sandbox;
use crate::{failed, reconcile};

/// So many pauses at once, and so many clean-ups: each moves gigabytes, and none waits for the other kind.
const AT_ONCE: usize = 4;

/// What is to be done about one sandbox.
#[derive(Debug)]
pub enum Job {
    /// It is idle: pause it, or what its `spec.on_expiry` says. The document is the one that made it so.
    Expire(Box<Document>),
    /// Its VM has died, or its page server.
    Fail,
    /// The operation that was at work on it was killed.
    Settle,
}

/// What a thread has to tell.
#[derive(Debug)]
pub enum News {
    /// A round of samples.
    Sampled(Vec<Sample>),
    /// It is still idle, and is being paused or removed.
    Expired(Id),
    /// A job of this queue is done.
    Done(Queue, Id, Outcome),
}

/// The queues: a clean-up does not wait for a pause.
#[derive(Debug, Clone, Copy)]
pub enum Queue {
    Expiries,
    Failures,
}

/// How a job ended.
#[derive(Debug)]
pub enum Outcome {
    Paused,
    Removed,
    /// It was used after all.
    Active,
    /// Another operation is at work on it: to be looked at again.
    Busy,
    /// It is in another state than the job was for, or in the one that the job was to bring about. What was done to settle
    /// it, if that was the job.
    Settled(Vec<Value>),
    /// The pause or the removal failed.
    NotExpired(Error),
    /// The clean-up failed, or not everything could be reclaimed.
    NotReclaimed(Error),
}

/// The threads, and what waits for them.
pub struct Work {
    host: Host,
    sender: Sender<News>,
    news: Receiver<News>,
    /// Readable when there is news.
    pub bell: Arc<EventFd>,
    waiting: [VecDeque<(Id, Job)>; 2],
    running: [usize; 2],
    sampling: bool,
}

impl Work {
    pub fn new(host: &Host) -> Result<Self, Error> {
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|errno| {
            Error::new(Kind::of_errno(errno), "watch.kernel", "cannot make an eventfd").errno(errno as i32)
        })?;
        let (sender, news) = channel();
        let (host, bell) = (host.clone(), Arc::new(bell));
        Ok(Self { host, sender, news, bell, waiting: Default::default(), running: [0; 2], sampling: false })
    }

    /// Has a job done, now or when there is room.
    pub fn give(&mut self, id: Id, job: Job) {
        self.waiting[job.queue() as usize].push_back((id, job));
        self.start();
    }

    /// Takes samples, unless the last round is not over.
    pub fn sample(&mut self, documents: Vec<(Id, Document)>) {
        if !std::mem::replace(&mut self.sampling, true) {
            let host = self.host.clone();
            let sample = move || sample::all(&host, documents.iter().map(|(id, document)| (id, document)));
            self.spawn(move |_| News::Sampled(unless_it_panics(sample).unwrap_or_default()));
        }
    }

    /// The news so far.
    pub fn news(&mut self) -> Vec<News> {
        let _ = self.bell.read();
        let news: Vec<News> = self.news.try_iter().collect();
        news.iter().for_each(|news| self.note(news));
        self.start();
        news
    }

    /// What has not begun does not begin any more. Waits for what has, and gives its news.
    pub fn finish(&mut self) -> Vec<News> {
        self.waiting = Default::default();
        let mut all = Vec::new();
        while !self.is_idle() {
            let Ok(news) = self.news.recv() else { break };
            self.note(&news);
            all.push(news);
        }
        all
    }

    pub fn is_idle(&self) -> bool {
        !self.sampling && self.running == [0; 2] && self.waiting.iter().all(VecDeque::is_empty)
    }

    fn note(&mut self, news: &News) {
        match news {
            News::Sampled(_) => self.sampling = false,
            News::Expired(_) => {}
            News::Done(queue, ..) => self.running[*queue as usize] -= 1,
        }
    }

    fn start(&mut self) {
        for queue in [Queue::Expiries, Queue::Failures] {
            while self.running[queue as usize] < AT_ONCE
                && let Some((id, job)) = self.waiting[queue as usize].pop_front()
            {
                self.running[queue as usize] += 1;
                let host = self.host.clone();
                self.spawn(move |tell| {
                    let done = unless_it_panics(|| job.run(&host, &id, tell));
                    News::Done(queue, id, done.unwrap_or_else(|error| queue.failed(error)))
                });
            }
        }
    }

    fn spawn(&self, work: impl FnOnce(&dyn Fn(News)) -> News + Send + 'static) {
        let (sender, bell) = (self.sender.clone(), self.bell.clone());
        std::thread::spawn(move || {
            let tell = |news| {
                // The receiver outlives all threads but those of a program that is ending.
                let _ = sender.send(news);
                let _ = bell.write(1);
            };
            tell(work(&tell));
        });
    }
}

impl Job {
    fn queue(&self) -> Queue {
        match self {
            Self::Expire(_) => Queue::Expiries,
            Self::Fail | Self::Settle => Queue::Failures,
        }
    }

    fn run(self, host: &Host, id: &Id, tell: &dyn Fn(News)) -> Outcome {
        // Whoever holds the lock may be about to do just this; and waiting here would hold up others.
        let _lock = match host.lock(&format!("{id}.op"), Duration::ZERO) {
            Ok(lock) => lock,
            Err(error) if error.kind == Kind::Timeout => return Outcome::Busy,
            Err(error) => return self.queue().failed(error),
        };
        let mut sandbox = match Sandbox::load(host, id.clone(), Options::default()) {
            Ok(sandbox) => sandbox,
            Err(error) if error.kind == Kind::NotFound => return Outcome::Settled(Vec::new()),
            Err(error) => return self.queue().failed(error),
        };
        let runs = sandbox.state() == "running";
        match self {
            Self::Settle => {
                let mut report = Vec::new();
                let settled =
                    sandbox.killed_at().map_or(Ok(()), |_| reconcile::settle(&mut sandbox, &mut report));
                settled.map_or_else(Outcome::NotReclaimed, |()| Outcome::Settled(report))
            }
            Self::Expire(seen) if runs => {
                expire::expire(&mut sandbox, &seen, || tell(News::Expired(id.clone())))
            }
            // Unless it was woken again meanwhile.
            Self::Fail if runs && failed::reason(&sandbox.document).is_some() => {
                let reason = cause::of(&sandbox.document);
                let done = failed::fail(&mut sandbox, &reason);
                done.map_or_else(Outcome::NotReclaimed, |()| Outcome::Settled(Vec::new()))
            }
            Self::Expire(_) | Self::Fail => Outcome::Settled(Vec::new()),
        }
    }
}

impl Queue {
    fn failed(self, error: Error) -> Outcome {
        match self {
            Self::Expiries => Outcome::NotExpired(error),
            Self::Failures => Outcome::NotReclaimed(error),
        }
    }
}

/// A bug in one sandbox's work must not leave it waited for, nor end the watch over the others.
fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| Error::new(Kind::Internal, "watch.panic", "the work on this sandbox panicked"))
}
