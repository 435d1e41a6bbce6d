//! One VMM, from its handshake to its end, on a thread of its own: no VMM waits for another one's pages.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use snap::{Image, Ranges};
use sys::process::Process;

use crate::Error;
use crate::channel::{Channel, object};
use crate::config::Config;
use crate::mail::{self, Mailbox, Sender};
use crate::orders::peer_json;
use crate::service::Service;
use crate::wait::{Rare, Waiter};

/// What all sessions of a server share.
pub(super) struct Common {
    pub config: Config,
    pub image: Arc<Image>,
    pub guardian: Channel,
}

/// A VMM.
pub(super) struct Session {
    common: Arc<Common>,
    pub service: Service,
    /// The how manieth VMM it is.
    client: u64,
    waiter: Waiter,
    leaves: bool,
}

/// Something to do between two turns.
type Job = Box<dyn FnOnce(&mut Session) + Send>;

/// A session that runs.
pub(super) struct Running {
    /// Whose memory it serves.
    pub peer: Process,
    /// The how manieth VMM it is.
    pub client: u64,
    jobs: Sender<Job>,
    thread: JoinHandle<(Session, Parted)>,
}

/// What became of a VMM whose session ended by itself; `None` of one that was told to end.
pub(super) type Parted = Result<Option<Map<String, Value>>, Error>;

/// How long a session may take until it has time for a question: it may be waiting for a disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// Why a session gives no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silent {
    /// It has ended, and soon so does the server, or it goes on without it.
    Over,
    /// It has had no time.
    Busy,
}

impl Running {
    /// Starts one. `over` is sent the number of the VMM when it is over.
    pub fn start(
        common: &Arc<Common>,
        service: Service,
        client: u64,
        over: &Sender<u64>,
    ) -> io::Result<Self> {
        let (jobs, mail) = mail::mailbox()?;
        let waiter = Waiter::new()?;
        waiter.add(&mail, Rare::Mail)?;
        waiter.add(&service.exit, Rare::Exit)?;
        let peer = service.peer.clone();
        let mut session = Session { common: common.clone(), service, client, waiter, leaves: false };
        let over = over.clone();
        let thread = std::thread::Builder::new().name(format!("vmm-{client}")).spawn(move || {
            let _fatal = Fatal;
            let ended = session.run(&mail);
            let parted = ended.and_then(|()| (!session.leaves).then(|| session.parted()).transpose());
            // Who asks from here on is told so, rather than left waiting.
            drop(mail);
            over.send(client);
            (session, parted)
        })?;
        Ok(Self { peer, client, jobs, thread })
    }

    /// Has the session do something, and waits for what it gives.
    pub fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Session) -> T + Send + 'static,
    ) -> Result<T, Silent> {
        self.begin_asking(job).wait()
    }

    /// Has the session do something meanwhile.
    fn begin_asking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Session) -> T + Send + 'static,
    ) -> Answer<T> {
        let (answer, answered) = mpsc::channel();
        self.jobs.send(Box::new(move |session| drop(answer.send(job(session)))));
        Answer { answered, deadline: Instant::now() + PATIENCE }
    }

    /// Ends the thread. What it served goes on waiting.
    pub fn end(self) -> (Session, Parted) {
        self.jobs.send(Box::new(|session| session.leaves = true));
        // It does not panic: see `Fatal`.
        self.thread.join().unwrap_or_else(|_| std::process::abort())
    }
}

/// Asks all of them, at once: that none of them answers takes no longer than that one does not.
pub(super) fn ask_all<T: Send + 'static>(
    sessions: &[Running],
    job: fn(&mut Session) -> T,
) -> impl Iterator<Item = (&Running, Result<T, Silent>)> {
    let asked: Vec<_> = sessions.iter().map(|session| (session, session.begin_asking(job))).collect();
    asked.into_iter().map(|(session, answer)| (session, answer.wait()))
}

/// What a session will say.
struct Answer<T> {
    answered: mpsc::Receiver<T>,
    deadline: Instant,
}

impl<T> Answer<T> {
    fn wait(self) -> Result<T, Silent> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.answered.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Disconnected => Silent::Over,
            RecvTimeoutError::Timeout => Silent::Busy,
        })
    }
}

/// A thread that panics takes the server along, so that the guardian starts another one: a VM would hang for ever otherwise.
struct Fatal;

impl Drop for Fatal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Session {
    /// Serves until the VMM is gone.
    fn run(&mut self, mail: &Mailbox<Job>) -> Result<(), Error> {
        while !self.leaves && !self.service.is_over() {
            let patience = self.service.patience();
            let ready = self.waiter.wait(self.service.engine.uffd().as_fd(), patience);
            let ready = ready.map_err(|source| Error::Events { source })?;
            let events = self.service.turn(ready.vmm, ready.has(Rare::Exit))?;
            events.into_iter().for_each(|(event, fields)| self.tell(event, fields));
            if ready.has(Rare::Mail) {
                mail.empty().into_iter().for_each(|job| job(self));
            }
        }
        Ok(())
    }

    /// Tells the guardian what happens to this VMM.
    fn tell(&self, event: &str, mut fields: Value) {
        fields["peer_pid"] = self.service.peer.pid.into();
        self.common.guardian.tell(event, fields);
    }

    /// How much of the VMM's memory is only in the image, in bytes: without this server it would hang. `None` when it is gone.
    pub fn missing(&mut self) -> Option<u64> {
        self.service.lives().then(|| self.service.engine.missing())
    }

    /// What becomes of the VMM now that its session is over. One that lives gets its memory back if it is all there, and is
    /// the guardian's to stop if not.
    fn parted(&mut self) -> Result<Map<String, Value>, Error> {
        if let Some((event, fields)) = self.service.end_recording() {
            self.tell(event, fields);
        }
        let mut parted = object(json!({"vmm": self.service.leave()?, "client": self.client}));
        parted.extend(object(peer_json(&self.service.peer)));
        parted.extend(object(self.service.stats()).into_iter().filter(|(name, _)| name != "state"));
        Ok(parted)
    }

    /// The same at the end of a session, however that came.
    pub fn left(&mut self, parted: Parted) -> Map<String, Value> {
        self.closed(parted).unwrap_or_else(|error| abandoned(&self.service.peer, self.client, error))
    }

    /// The same of one that was to be the only one: if it cannot be served any more that is the service's failure.
    pub fn closed(&mut self, parted: Parted) -> Result<Map<String, Value>, Error> {
        parted.and_then(|parted| parted.map_or_else(|| self.parted(), Ok))
    }

    /// Applies everything read so far: the next server goes on from there.
    pub fn put_down(&mut self) -> Result<(), Error> {
        if let Some((event, fields)) = self.service.put_down()? {
            self.tell(event, fields);
        }
        Ok(())
    }

    /// What was done so far.
    pub fn stats(&mut self) -> Map<String, Value> {
        object(self.service.stats())
    }

    /// The ranges discarded since the snapshot `since`; and that one has been dumped into `dumped`.
    pub fn removed(&mut self, since: Option<&Path>, dumped: Option<PathBuf>) -> Result<Ranges, Error> {
        // A discard that has returned was read, or it would not have returned; one under way is read here.
        self.service.engine.drain()?;
        let removed = self.service.engine.removed_since(since);
        if let Some(dir) = dumped {
            self.service.engine.dumped(dir)?;
            if let Some((event, fields)) = self.service.forget_recording() {
                self.tell(event, fields);
            }
        }
        Ok(removed)
    }
}

/// What becomes of a VMM that cannot be served, or not any more.
pub(super) fn abandoned(peer: &Process, client: u64, error: Error) -> Map<String, Value> {
    let error = wire::Error::from(error).to_json("wrenn-uffd", "serve");
    let mut parted = object(json!({"vmm": "abandoned", "client": client, "error": error}));
    parted.extend(object(peer_json(peer)));
    parted
}
