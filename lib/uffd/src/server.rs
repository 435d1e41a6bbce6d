//! The server process: listens, takes the VMM's handshake, serves until the VMM is gone or it is told to stop.
//!
//! It tells its parent, the guardian, what happens: events, the last of them `closed`, `failed`, or `handover` to one that
//! goes on in its place. An end without any of these means that it died.

mod begin;
mod verbs;

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snap::Image;
use sys::process::Process;

use crate::channel::{Teller, object};
use crate::config::Config;
use crate::control::Connection;
use crate::handshake::{Greeting, Handshake};
use crate::orders::Orders;
use crate::service::Service;
use crate::socket::{self, Listener};
use crate::wait::{Rare, Ready, Waiter};
use crate::{Engine, Error};

/// How long a VMM that has connected may take to say the rest.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// A server.
pub(crate) struct Server {
    config: Config,
    /// What the service is called.
    name: Process,
    me: Process,
    restarts: u64,
    /// How many VMMs have come so far.
    came: u64,
    image: Arc<Image>,
    /// Where to write down what happens.
    trace: Option<File>,
    /// Goes when the last VMM is served.
    listener: Option<Listener>,
    vmm: Vmm,
    control: Listener,
    connections: Vec<Connection>,
    /// Who asked for another server in this one's place.
    relief: Option<Connection>,
    guardian: Teller,
    /// Whether the guardian is gone.
    orphaned: bool,
    waiter: Waiter,
}

/// How far the VMM has come.
enum Vmm {
    Awaited,
    Greeting(Handshake),
    Served(Box<Service>),
}

/// Why a server ended, all being well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    VmmGone,
    Stopped,
    Signal,
    /// The guardian died before any VMM had come: nobody will miss this server.
    Orphaned,
    /// Another server takes over.
    Relieved,
}

/// Runs a server until it ends.
pub(crate) fn run(orders: Orders) -> ExitCode {
    let paths = orders.config.paths.clone();
    match begin::begin(orders) {
        Ok(mut server) => {
            let status = server.run();
            if server.orphaned {
                // There is nobody else to look after them.
                let unheard = server.listener.iter().flat_map(|listener| socket::unheard(&listener.socket));
                unheard.for_each(|vmm| drop(vmm.end(Duration::ZERO)));
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
                Ok(None) => {}
                Ok(Some(Reason::Relieved)) => break self.hand_over(),
                Ok(Some(reason)) => break self.close(reason).map(|closed| ("closed", closed)),
                Err(error) => break Err(error),
            }
        };
        match ended {
            Ok((event, fields)) => {
                if fields["vmm"] == "abandoned" {
                    self.stop_owed();
                }
                self.guardian.tell(event, fields);
                ExitCode::SUCCESS
            }
            Err(error) => {
                let mut fields = self.owed().map_or(json!({}), |peer| peer_fields(&peer));
                let error = wire::Error::from(error);
                fields["error"] = error.to_json("wrenn-uffd", "serve");
                self.guardian.tell("failed", fields);
                self.stop_owed();
                ExitCode::from(error.kind.status())
            }
        }
    }

    /// The VMM that hangs if this server fails: one that has handed over its userfaultfd.
    fn owed(&self) -> Option<Process> {
        match &self.vmm {
            Vmm::Served(service) => Some(service.peer.clone()),
            Vmm::Greeting(handshake) if handshake.has_descriptor() => {
                Process::of_pid(handshake.peer().pid).ok()
            }
            _ => None,
        }
    }

    /// Waits for something to happen, and does what it asks for.
    fn turn(&mut self) -> Result<Option<Reason>, Error> {
        let mut ready = self.wait()?;
        if ready.has(Rare::Signal) && sys::signals::pending().is_some() {
            return Ok(Some(Reason::Signal));
        }
        if ready.has(Rare::Orphaned) {
            self.orphaned = true;
            if !matches!(self.vmm, Vmm::Served(_)) {
                return Ok(Some(Reason::Orphaned));
            }
            // There is a VMM to serve: go on without.
            self.waiter.forget(&self.guardian.0).map_err(|source| Error::Events { source })?;
            eprintln!("{} orphaned {{}}", wire::timestamp());
        }
        let mut rounds = 1;
        if ready.has(Rare::Control) && !matches!(self.vmm, Vmm::Served(_)) {
            // A VMM that has connected, and said who it is, before somebody asked counts.
            (ready.vmm, rounds) = (true, 2);
        }
        for _ in 0..rounds {
            let attended = self.attend(&ready);
            // The only one counts also when it is gone before it is served. Who serves a single VMM fails with it.
            let is_last = self.orphaned || self.listener.is_none() || self.config.clients == 1;
            match attended {
                Ok(false) => {}
                Ok(true) if is_last => return Ok(Some(Reason::VmmGone)),
                Ok(true) => self.left(None)?,
                Err(error) if is_last => return Err(error),
                Err(error) => self.left(Some(error))?,
            }
        }
        if ready.has(Rare::Control)
            && let Some(reason) = self.verbs()?
        {
            return Ok(Some(reason));
        }
        let greets = matches!(self.vmm, Vmm::Greeting(_));
        Ok(self.relief.is_some().then_some(Reason::Relieved).filter(|_| !greets))
    }

    /// Does what the VMM asks for, or takes the next one. Gives whether it is gone.
    fn attend(&mut self, ready: &Ready) -> Result<bool, Error> {
        match &mut self.vmm {
            Vmm::Served(service) => {
                let events = service.turn(ready.vmm, ready.has(Rare::Exit))?;
                events.into_iter().for_each(|(event, fields)| self.guardian.tell(event, fields));
                Ok(service.is_over())
            }
            Vmm::Awaited if ready.vmm => self.accept().map(|()| false),
            Vmm::Greeting(handshake) if ready.vmm || Instant::now() >= handshake.deadline() => self.greet(),
            _ => Ok(false),
        }
    }

    /// A VMM has gone, or cannot be served, and others may come.
    fn left(&mut self, error: Option<Error>) -> Result<(), Error> {
        let mut fields = match error {
            None => self.parted()?,
            Some(error) => {
                let mut fields = self.owed().map_or(json!({"vmm": "none"}), |peer| {
                    let mut fields = peer_fields(&peer);
                    fields["vmm"] = "abandoned".into();
                    fields
                });
                fields["error"] = wire::Error::from(error).to_json("wrenn-uffd", "serve");
                fields
            }
        };
        fields["came"] = self.came.into();
        self.guardian.tell("left", fields);
        self.vmm = Vmm::Awaited;
        // What one VM discarded says nothing about the next.
        socket::remove(&self.config.paths.removed)
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<Ready, Error> {
        let (vmm, limit) = match &self.vmm {
            Vmm::Awaited => (self.listener.as_ref().unwrap_or(&self.control).socket.as_fd(), None),
            Vmm::Greeting(handshake) => (
                handshake.stream().as_fd(),
                Some(handshake.deadline().saturating_duration_since(Instant::now())),
            ),
            Vmm::Served(service) => (service.engine.uffd().as_fd(), service.patience()),
        };
        self.waiter.wait(vmm, limit).map_err(|source| Error::Events { source })
    }

    /// Takes a VMM's connection.
    fn accept(&mut self) -> Result<(), Error> {
        let Some(listener) = &self.listener else { return Ok(()) };
        let Some(stream) = listener.accept()? else { return Ok(()) };
        let path = &self.config.paths.socket;
        let handshake = Handshake::new(stream, HANDSHAKE).map_err(Error::io("look at the peer of", path))?;
        match socket::is_trusted(handshake.peer()) {
            true => self.vmm = Vmm::Greeting(handshake),
            false => {
                let message = format!("refused a VMM of user {}: not mine", handshake.peer().uid);
                self.guardian.tell("warning", json!({ "message": message }));
            }
        }
        Ok(())
    }

    /// Goes on with the VMM's handshake, and begins to serve it when it is complete.
    /// Gives whether it is gone.
    fn greet(&mut self) -> Result<bool, Error> {
        let Vmm::Greeting(handshake) = &mut self.vmm else { return Ok(false) };
        let had = handshake.has_descriptor();
        let greeting = handshake.advance();
        if !had
            && handshake.has_descriptor()
            && let Ok(peer) = Process::of_pid(handshake.peer().pid)
        {
            // From here on it would hang if this server died.
            self.guardian.tell("greeting", peer_fields(&peer));
        }
        let (regions, uffd) = match greeting? {
            Greeting::Waiting => return Ok(false),
            Greeting::Nothing => {
                self.vmm = Vmm::Awaited;
                return Ok(false);
            }
            Greeting::Done(regions, uffd) => (regions, uffd),
        };
        let pid = handshake.peer().pid;
        let Ok(peer) = Process::of_pid(pid) else { return Ok(true) };
        let exit = peer.pidfd().map_err(Error::io("watch", format!("pid {pid}")))?;
        let Some(exit) = exit else { return Ok(true) };
        self.waiter.add(&exit, Rare::Exit).map_err(|source| Error::Events { source })?;
        let mut engine = Engine::new(uffd, self.image.clone(), regions)?;
        engine.state().set_peer(&peer);
        if let Some(file) = self.trace.take() {
            engine.trace(file, peer.pid);
        }
        let mut fields = peer_fields(&peer);
        fields["regions"] = engine.regions().into();
        fields["bytes"] = engine.bytes().into();
        let given = [engine.uffd().as_fd(), engine.state().as_fd()];
        if let Err(error) = self.guardian.hand_over("connected", fields, &given) {
            // Should this server die, the VMM is stopped.
            log::warn!("the guardian cannot take over: {error}");
        }
        let (service, warning) = Service::start(&self.config, engine, peer, exit);
        if let Some(message) = warning {
            self.guardian.tell("warning", json!({ "message": message }));
        }
        self.vmm = Vmm::Served(Box::new(service));
        self.came += 1;
        if self.came == self.config.clients {
            self.listener = None;
        }
        Ok(false)
    }

    /// The last event. A VMM that lives gets its memory back if it is all there, and is the guardian's to stop if not.
    fn close(&mut self, reason: Reason) -> Result<Value, Error> {
        let mut closed = object(json!({"reason": reason.word()}));
        closed.extend(object(self.parted()?));
        Ok(Value::Object(closed))
    }

    /// What became of the VMM that is there, if one is.
    fn parted(&mut self) -> Result<Value, Error> {
        let mut closed = object(json!({"vmm": "none"}));
        if let Some(peer) = self.owed() {
            // Also one that was still introducing itself.
            closed.insert("vmm".into(), "abandoned".into());
            closed.extend(object(peer_fields(&peer)));
        }
        if let Vmm::Served(service) = &mut self.vmm {
            if let Some((event, fields)) = service.end_recording() {
                self.guardian.tell(event, fields);
            }
            closed.insert("vmm".into(), service.leave()?.into());
            closed.extend(object(service.stats()).into_iter().filter(|(name, _)| name != "state"));
        }
        Ok(Value::Object(closed))
    }

    /// Ends with everything read so far applied: the next one goes on from there.
    fn hand_over(&mut self) -> Result<(&'static str, Value), Error> {
        if let Vmm::Served(service) = &mut self.vmm
            && let Some((event, fields)) = service.put_down()?
        {
            self.guardian.tell(event, fields);
        }
        let described = self.described();
        if let Some(mut connection) = self.relief.take() {
            connection.answer(Ok(described));
        }
        Ok(("handover", json!({})))
    }

    /// Does what the guardian would if it were there.
    fn stop_owed(&mut self) {
        if self.orphaned
            && let Some(peer) = self.owed()
            && peer.end(Duration::ZERO).is_ok()
        {
            let fields = json!({"pid": peer.pid, "reason": "its page server ended while pages were missing"});
            eprintln!("{} vmm_stopped {fields}", wire::timestamp());
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
            Self::Relieved => "relieved",
        }
    }
}

/// A VMM's name, as it goes into events.
fn peer_fields(peer: &Process) -> Value {
    json!({"peer_pid": peer.pid, "peer_start_time": peer.start_time, "peer_boot_id": peer.boot_id})
}
