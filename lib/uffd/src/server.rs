//! The server process: serves each VMM that its guardian gives it in a [`Session`] of its own, until they are gone or it is
//! told to stop.
//!
//! It tells its parent, the guardian, what happens: events, the last of them `closed`, `failed`, or `handover` to one that
//! goes on in its place. An end without any of these means that it died.

mod begin;
mod session;
mod verbs;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sys::process::{Process, readable};

use crate::channel::{Event, Heard, object};
use crate::control::{Connection, Request};
use crate::mail::{Mailbox, Sender};
use crate::note::note;
use crate::orders::{Orders, peer_json, process_of};
use crate::socket::{self, Listener};
use crate::wait::{Rare, Waiter};
use crate::{Error, Prefetch, warm};
use begin::Taken;
use session::{Common, Parted, Running, Session, abandoned};
use verbs::Greeting;

/// A server.
pub(crate) struct Server {
    common: Arc<Common>,
    /// What the service is called.
    name: Process,
    me: Process,
    /// Which image it is.
    image: String,
    restarts: u64,
    /// How many VMMs have come so far.
    came: u64,
    /// Whether the image is being brought into memory.
    warmed: bool,
    /// Where to write down what happens to the first of them.
    trace: Option<File>,
    sessions: Vec<Running>,
    /// Tells which sessions are over.
    over: (Sender<u64>, Mailbox<u64>),
    control: Listener,
    /// Where VMMs connect, as long as any may come. It is the guardian who hears them; when he is killed they are to be found.
    socket: Option<UnixListener>,
    connections: Vec<Connection>,
    /// Questions that wait until all VMMs that came before them are known: after this answer of the guardian.
    asked: Vec<(u64, Connection, Request)>,
    /// How often the guardian was asked for these.
    syncs: u64,
    /// Who asked for another server in this one's place.
    relief: Option<Connection>,
    /// Whether the guardian is gone.
    orphaned: bool,
    /// The VMMs that it is to stop.
    left_behind: Vec<Process>,
    waiter: Waiter,
}

/// Why a server ends, all being well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    VmmGone,
    Stopped,
    Signal,
    /// The guardian died before any VMM had come: nobody will miss this server.
    Orphaned,
}

/// What a turn came to.
enum Turn {
    Goes,
    Ends(Reason),
    /// The only VMM's session is over.
    Over(Box<Session>, Parted),
    /// Another server takes over.
    Relieved,
}

/// Why a VMM was stopped that the server had served.
const LEFT: &str = "its page server ended while pages were missing";

/// Why one was that it had not.
const UNHEARD: &str = "its page server's guardian was killed before hearing it";

/// How long a guardian may take to stop them.
const PATIENCE: Duration = Duration::from_secs(5);

/// A failure of the server, and the VMM that it was about.
type Failed = (Error, Option<Process>);

/// Runs a server until it ends.
pub(crate) fn run(orders: Orders) -> ExitCode {
    let paths = orders.config.paths.clone();
    match begin::begin(orders) {
        Ok(mut server) => {
            let status = server.run();
            if server.orphaned {
                // There is nobody else to look after them.
                drop(server);
                socket::clear_up(&paths);
            }
            status
        }
        Err(status) => status,
    }
}

impl Server {
    fn run(&mut self) -> ExitCode {
        let ended = loop {
            match self.turn() {
                Ok(Turn::Goes) => {}
                Ok(Turn::Ends(reason)) => break self.close(reason),
                Ok(Turn::Over(mut session, parted)) => {
                    break self.closed(Reason::VmmGone, &mut session, parted);
                }
                Ok(Turn::Relieved) => break self.hand_over(),
                Err(failed) => break Err(failed),
            }
        };
        match ended {
            Ok((event, fields)) => {
                self.common.guardian.last_words(event, fields);
                // Who is to start the next one waits for this one's end.
                self.see_off(if event == "handover" { Duration::ZERO } else { PATIENCE });
                ExitCode::SUCCESS
            }
            Err((error, vmm)) => {
                let mut fields = vmm.as_ref().map_or(json!({}), peer_json);
                let error = wire::Error::from(error);
                fields["error"] = error.to_json("wrenn-uffd", "serve");
                self.common.guardian.last_words("failed", fields);
                let others = std::mem::take(&mut self.sessions).into_iter().map(|session| session.peer);
                self.left_behind.extend(vmm.into_iter().chain(others));
                self.see_off(PATIENCE);
                ExitCode::from(error.kind.status())
            }
        }
    }

    /// Stays until the guardian has stopped the VMMs that are left behind, for which it ends this process first. If it has
    /// died nobody else would do it.
    fn see_off(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            match self.common.guardian.hear() {
                // Not served any more.
                Ok(Heard::Event(Event { name, fds, .. })) if name == "vmm" => {
                    self.left_behind.extend(Taken::new(fds).map(|taken| taken.peer).ok());
                }
                Ok(Heard::Event(_)) => {}
                Ok(Heard::Nothing) => {
                    self.left_behind.retain(Process::is_alive);
                    let left = deadline.saturating_duration_since(Instant::now());
                    let waits = !self.left_behind.is_empty() && !left.is_zero();
                    if !waits || !readable(&self.common.guardian, left).unwrap_or(false) {
                        return;
                    }
                }
                Ok(Heard::Ended) | Err(_) => return self.orphan(),
            }
        }
    }

    /// The guardian is gone: what it was to do is done here.
    fn orphan(&mut self) {
        self.orphaned = true;
        let left = std::mem::take(&mut self.left_behind);
        left.iter().for_each(|vmm| self.stop(vmm, LEFT));
        // They have handed themselves over, and nobody will hear it.
        let unheard = self.socket.take().map_or(Vec::new(), |socket| socket::unheard(&socket));
        unheard.iter().for_each(|vmm| self.stop(vmm, UNHEARD));
    }

    /// Whether there is one VMM to serve, and the service ends with it.
    fn is_for_one(&self) -> bool {
        self.common.config.clients == 1
    }

    /// Whether more VMMs may come.
    fn may_come(&self) -> bool {
        !self.orphaned && self.common.config.wants_more_than(self.came)
    }

    /// Waits for something to happen, and does what it asks for.
    fn turn(&mut self) -> Result<Turn, Failed> {
        let failed = |source| (Error::Events { source }, None);
        if self.sessions.is_empty() && !self.may_come() {
            return Ok(Turn::Ends(Reason::VmmGone));
        }
        let ready = self.waiter.wait_rare().map_err(failed)?;
        if ready.has(Rare::Signal) && sys::signals::pending().is_some() {
            return Ok(Turn::Ends(Reason::Signal));
        }
        for client in self.over.1.empty() {
            let Some(index) = self.sessions.iter().position(|session| session.client == client) else {
                continue;
            };
            let (mut session, parted) = self.sessions.remove(index).end();
            if self.is_for_one() {
                return Ok(Turn::Over(Box::new(session), parted));
            }
            self.left(&mut session, parted);
        }
        if ready.has(Rare::Guardian)
            && let Some(reason) = self.heed()?
        {
            return Ok(Turn::Ends(reason));
        }
        if ready.has(Rare::Control)
            && let Some(reason) = self.verbs().map_err(|error| (error, None))?
        {
            return Ok(Turn::Ends(reason));
        }
        Ok(if self.relief.is_some() { Turn::Relieved } else { Turn::Goes })
    }

    /// Does what the guardian says.
    fn heed(&mut self) -> Result<Option<Reason>, Failed> {
        loop {
            match self.common.guardian.hear().map_err(|error| (error, None))? {
                Heard::Nothing => return Ok(None),
                Heard::Event(Event { name, fds, .. }) if name == "vmm" => {
                    self.has_come();
                    let taken = Taken::new(fds).map_err(|error| (error, None))?;
                    let peer = taken.peer.clone();
                    self.begin(taken).map_err(|error| (error, Some(peer)))?;
                }
                // It had gone before it could be given.
                Heard::Event(Event { name, .. }) if name == "gone" => self.has_come(),
                Heard::Event(Event { fields, .. }) => {
                    let synced = fields.get("sync").and_then(Value::as_u64).unwrap_or(0);
                    let handed = fields.get("greeting").and_then(Value::as_array).into_iter().flatten();
                    let handed = handed.filter_map(process_of).collect();
                    let others = fields.get("others").and_then(Value::as_u64) != Some(0);
                    if let Some(reason) = self.answer_asked(synced, &Greeting { handed, others }) {
                        return Ok(Some(reason));
                    }
                }
                Heard::Ended => {
                    self.orphan();
                    let failed = |source| (Error::Events { source }, None);
                    self.waiter.forget(&self.common.guardian).map_err(failed)?;
                    if self.sessions.is_empty() {
                        return Ok(Some(Reason::Orphaned));
                    }
                    // There is a VMM to serve: go on without.
                    note("orphaned {}");
                    return Ok(self.answer_asked(u64::MAX, &Greeting::default()));
                }
            }
        }
    }

    fn has_come(&mut self) {
        self.came += 1;
        if !self.may_come() {
            self.socket = None;
        }
    }

    /// Begins to serve a VMM. If that cannot be it is an error where it is the only one.
    fn begin(&mut self, taken: Taken) -> Result<(), Error> {
        let (peer, client) = (taken.peer.clone(), taken.client);
        if self.common.config.prefetch == Prefetch::All && !std::mem::replace(&mut self.warmed, true) {
            // Also while a recording keeps it from being loaded: it may be read from the disk already.
            warm::begin(&self.common.image);
        }
        let begun = taken.begin(&self.common, self.trace.take()).and_then(|service| {
            Running::start(&self.common, service, client, &self.over.0)
                .map_err(|source| Error::Events { source })
        });
        match begun {
            Ok(session) => self.sessions.push(session),
            Err(error) if self.is_for_one() => return Err(error),
            Err(error) => self.tell_left(&peer, abandoned(&peer, client, error)),
        }
        Ok(())
    }

    /// Tells of one of several VMMs that it has gone, or cannot be served any more.
    fn left(&mut self, session: &mut Session, parted: Parted) {
        let parted = session.left(parted);
        self.tell_left(&session.service.peer, parted);
    }

    fn tell_left(&mut self, peer: &Process, parted: Map<String, Value>) {
        self.stop_abandoned(&parted, peer);
        // What one VM discarded says nothing about another.
        let _ = socket::remove(&self.removed(Some(peer)));
        self.common.guardian.last_words("left", Value::Object(parted));
    }

    /// Ends: the last event.
    fn close(&mut self, reason: Reason) -> Result<(&'static str, Value), Failed> {
        let sessions = std::mem::take(&mut self.sessions);
        for (mut session, parted) in sessions.into_iter().map(Running::end) {
            if self.is_for_one() {
                return self.closed(reason, &mut session, parted);
            }
            self.left(&mut session, parted);
        }
        Ok(("closed", json!({"reason": reason.word(), "vmm": "none", "came": self.came})))
    }

    /// The last event of a service with one VMM, which has come.
    fn closed(
        &mut self,
        reason: Reason,
        session: &mut Session,
        parted: Parted,
    ) -> Result<(&'static str, Value), Failed> {
        let parted = session.closed(parted).map_err(|error| (error, Some(session.service.peer.clone())))?;
        self.stop_abandoned(&parted, &session.service.peer);
        let mut closed = object(json!({"reason": reason.word()}));
        closed.extend(parted);
        Ok(("closed", Value::Object(closed)))
    }

    /// Ends with everything read so far applied: the next one goes on from there.
    fn hand_over(&mut self) -> Result<(&'static str, Value), Failed> {
        for (mut session, parted) in std::mem::take(&mut self.sessions).into_iter().map(Running::end) {
            if self.is_for_one() && !session.service.lives() {
                return self.closed(Reason::VmmGone, &mut session, parted);
            }
            let parted = match parted {
                Ok(None) => session.put_down().map(|()| None),
                parted => parted,
            };
            match parted {
                Ok(None) => self.left_behind.push(session.service.peer),
                Err(error) if self.is_for_one() => return Err((error, Some(session.service.peer))),
                parted => self.left(&mut session, parted),
            }
        }
        if let Some(mut connection) = self.relief.take() {
            connection.answer(Ok(self.answer(Map::new())));
        }
        Ok(("handover", json!({})))
    }

    fn stop_abandoned(&mut self, parted: &Map<String, Value>, peer: &Process) {
        match parted.get("vmm").and_then(Value::as_str) {
            Some("abandoned") if self.orphaned => self.stop(peer, LEFT),
            Some("abandoned") => self.left_behind.push(peer.clone()),
            _ => {}
        }
    }

    /// Does what the guardian would if it were there.
    fn stop(&self, vmm: &Process, reason: &str) {
        if vmm.is_alive() && vmm.end(Duration::ZERO).is_ok() {
            let fields = json!({"pid": vmm.pid, "reason": reason});
            note(format_args!("vmm_stopped {fields}"));
        }
    }
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Self::VmmGone => "vmm_gone",
            Self::Stopped => "stopped",
            Self::Signal => "signal",
            Self::Orphaned => "orphaned",
        }
    }
}
