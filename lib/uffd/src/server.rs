//! The server process: listens, takes the VMM's handshake, serves until the VMM is gone or it is told to stop.
//!
//! It tells its parent, the guardian, what happens: events as lines of JSON through a pipe, the last of them `closed` or
//! `failed`. A pipe that ends without either means that it died.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use snap::{Image, Removed};
use sys::process::Process;

use crate::config::Config;
use crate::control::{Connection, Request};
use crate::epochs::Epochs;
use crate::handshake::{Greeting, Handshake};
use crate::service::Service;
use crate::socket::{self, Listener};
use crate::wait::{Rare, Ready, Waiter};
use crate::workingset::replace;
use crate::{Engine, Error, trace};

/// How long a VMM that has connected may take to say the rest.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How many verbs may talk to the server at once.
const CONNECTIONS: usize = 8;

/// A server.
pub(crate) struct Server {
    config: Config,
    /// Taken by the service when it begins.
    image: Option<Image>,
    /// Where to write down what happens.
    trace: Option<File>,
    /// Goes when a VMM is served: a second one is refused by the kernel rather than left waiting.
    listener: Option<Listener>,
    vmm: Vmm,
    control: Listener,
    connections: Vec<Connection>,
    epochs: Epochs,
    guardian: Guardian,
    waiter: Waiter,
}

/// How far the VMM has come.
enum Vmm {
    Awaited,
    Greeting(Handshake),
    Served(Box<Service>),
}

/// Who started this process, and the pipe it listens on.
struct Guardian {
    process: Process,
    events: File,
}

/// Why a server ended, all being well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    VmmGone,
    Stopped,
    Signal,
    /// The guardian died before any VMM had come: nobody will miss this server.
    Orphaned,
}

/// Runs a server until it ends. `events` is the pipe to the guardian.
pub(crate) fn run(config: Config, events: File) -> ExitCode {
    let parent = nix::unistd::getppid().as_raw();
    let mut guardian = match Process::of_pid(parent) {
        Ok(process) => Guardian { process, events },
        Err(error) => {
            eprintln!("{} wrenn-uffd: no guardian at pid {parent}: {error}", wire::timestamp());
            return ExitCode::FAILURE;
        }
    };
    match start(&config, &mut guardian) {
        Ok(Started { image, trace, control, listener, waiter }) => Server {
            config,
            image: Some(image),
            trace,
            listener: Some(listener),
            vmm: Vmm::Awaited,
            control,
            connections: Vec::new(),
            epochs: Epochs::default(),
            guardian,
            waiter,
        }
        .run(),
        Err(error) => {
            guardian.tell("failed", json!({"error": error.to_json("wrenn-uffd", "serve")}));
            ExitCode::from(error.kind.status())
        }
    }
}

/// What a server begins with.
struct Started {
    image: Image,
    trace: Option<File>,
    control: Listener,
    listener: Listener,
    waiter: Waiter,
}

/// Opens and binds everything, and says so.
fn start(config: &Config, guardian: &mut Guardian) -> Result<Started, wire::Error> {
    let image = config.source.open()?;
    let me = Process::current().map_err(Error::io("read", "/proc/self/stat"))?;
    let control = Listener::bind(&config.paths.control)?;
    let listener = Listener::bind(&config.paths.socket)?;
    let trace = config.trace.as_deref().map(trace::Writer::create).transpose()?;
    // What an earlier server saw discarded says nothing about this one's VM.
    socket::remove(&config.paths.removed)?;
    let waiter = wait_for(&control, guardian).map_err(|source| Error::Events { source })?;
    guardian.tell(
        "listening",
        json!({"socket": config.paths.socket, "control": config.paths.control, "bytes": image.size(),
               "pid": me.pid, "start_time": me.start_time, "boot_id": me.boot_id}),
    );
    Ok(Started { image, trace, control, listener, waiter })
}

fn wait_for(control: &Listener, guardian: &Guardian) -> io::Result<Waiter> {
    let waiter = Waiter::new()?;
    waiter.add(control.socket(), Rare::Control)?;
    waiter.add(&guardian.events, Rare::Orphaned)?;
    if let Some(signals) = sys::signals::fd() {
        waiter.add(signals, Rare::Signal)?;
    }
    Ok(waiter)
}

impl Guardian {
    /// One event. A guardian that is gone does not keep the server from serving.
    fn tell(&mut self, event: &str, fields: Value) {
        let mut line = json!({ "event": event });
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields);
        }
        let _ = self.events.write_all(format!("{line}\n").as_bytes());
    }
}

impl Server {
    fn run(mut self) -> ExitCode {
        let ended = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(reason)) => break self.close(reason),
                Err(error) => break Err(error),
            }
        };
        match ended {
            Ok(closed) => {
                self.guardian.tell("closed", closed);
                ExitCode::SUCCESS
            }
            Err(error) => {
                let mut fields = self.owed().map_or(json!({}), |peer| peer_fields(&peer));
                let error = wire::Error::from(error);
                fields["error"] = error.to_json("wrenn-uffd", "serve");
                self.guardian.tell("failed", fields);
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
        let ready = self.wait()?;
        if ready.has(Rare::Signal) && sys::signals::pending().is_some() {
            return Ok(Some(Reason::Signal));
        }
        if ready.has(Rare::Orphaned) {
            return Ok(Some(Reason::Orphaned));
        }
        match &mut self.vmm {
            Vmm::Served(service) => {
                let events = service.turn(ready.vmm, ready.has(Rare::Exit))?;
                events.into_iter().for_each(|(event, fields)| self.guardian.tell(event, fields));
                if service.is_over() {
                    return Ok(Some(Reason::VmmGone));
                }
            }
            Vmm::Awaited if ready.vmm => self.accept()?,
            Vmm::Greeting(handshake) if ready.vmm || Instant::now() >= handshake.deadline() => {
                if let Some(reason) = self.greet()? {
                    return Ok(Some(reason));
                }
            }
            _ => {}
        }
        if ready.has(Rare::Control) { self.verbs() } else { Ok(None) }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<Ready, Error> {
        let (vmm, limit) = match &self.vmm {
            Vmm::Awaited => (self.listener.as_ref().unwrap_or(&self.control).socket().as_fd(), None),
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
    fn greet(&mut self) -> Result<Option<Reason>, Error> {
        let Vmm::Greeting(handshake) = &mut self.vmm else { return Ok(None) };
        let (regions, uffd) = match handshake.advance()? {
            Greeting::Waiting => return Ok(None),
            Greeting::Nothing => {
                self.vmm = Vmm::Awaited;
                return Ok(None);
            }
            Greeting::Done(regions, uffd) => (regions, uffd),
        };
        let pid = handshake.peer().pid;
        let gone = Ok(Some(Reason::VmmGone));
        let Ok(peer) = Process::of_pid(pid) else { return gone };
        let Some(exit) = peer.pidfd().map_err(Error::io("watch", format!("pid {pid}")))? else { return gone };
        let Some(image) = self.image.take() else { return Ok(None) };
        // From here on the guardian's death matters no more: there is a VMM to serve.
        let watched =
            self.waiter.add(&exit, Rare::Exit).and_then(|()| self.waiter.forget(&self.guardian.events));
        watched.map_err(|source| Error::Events { source })?;
        let mut engine = Engine::new(uffd, image, regions)?;
        if let Some(file) = self.trace.take() {
            engine.trace(file, peer.pid);
        }
        let mut fields = peer_fields(&peer);
        fields["regions"] = engine.regions().into();
        fields["bytes"] = engine.bytes().into();
        self.guardian.tell("connected", fields);
        let (service, warning) = Service::start(&self.config, engine, peer, exit);
        if let Some(message) = warning {
            self.guardian.tell("warning", json!({ "message": message }));
        }
        self.vmm = Vmm::Served(Box::new(service));
        self.listener = None;
        Ok(None)
    }

    /// Answers the verbs that ask.
    fn verbs(&mut self) -> Result<Option<Reason>, Error> {
        // A VMM that has connected before somebody asked counts.
        if matches!(self.vmm, Vmm::Awaited) {
            self.accept()?;
        }
        if let Some(reason) = self.greet()? {
            return Ok(Some(reason));
        }
        while let Some(stream) = self.control.accept()? {
            if sys::fdpass::peer(&stream).is_ok_and(socket::is_trusted) {
                if self.connections.len() == CONNECTIONS {
                    self.connections.remove(0);
                }
                let watched = self.waiter.add(&stream, Rare::Control);
                watched.map_err(|source| Error::Events { source })?;
                self.connections.push(Connection::new(stream));
            }
        }
        let mut reason = None;
        for mut connection in std::mem::take(&mut self.connections) {
            match connection.request() {
                Ok(None) => self.connections.push(connection),
                Ok(Some(Request::Stats { since, dumped })) => {
                    connection.answer(self.stats(since.as_deref(), dumped).map_err(Into::into));
                }
                Ok(Some(Request::Look)) => connection.answer(Ok(self.described())),
                Ok(Some(Request::Stop { force })) => {
                    let answer = self.stoppable(force).map(|()| self.described());
                    reason = answer.is_ok().then_some(Reason::Stopped).or(reason);
                    connection.answer(answer.map_err(Into::into));
                }
                Err(()) => {}
            }
        }
        Ok(reason)
    }

    /// What was done so far; the ranges discarded since the snapshot `since` are in their file when this returns.
    fn stats(&mut self, since: Option<&Path>, dumped: Option<PathBuf>) -> Result<Value, Error> {
        let mut removed = Removed::new();
        if let Vmm::Served(service) = &mut self.vmm {
            // A discard that has returned was read, or it would not have returned; one under way is read here.
            service.engine.drain()?;
            let fresh = service.engine.fresh();
            removed = self.epochs.since(since, &fresh);
            if let Some(dir) = dumped {
                self.epochs.end(dir, fresh);
                service.engine.forget_fresh();
                if let Some((event, fields)) = service.forget_recording() {
                    self.guardian.tell(event, fields);
                }
            }
        }
        let described = self.described();
        replace(&self.config.paths.removed, format!("{}\n", removed.to_json()).as_bytes())?;
        self.guardian.tell("stats", described["stats"].clone());
        Ok(described)
    }

    fn described(&mut self) -> Value {
        let stats = match &mut self.vmm {
            Vmm::Awaited => json!({"state": "listening", "complete": false}),
            Vmm::Greeting(..) => json!({"state": "handshake", "complete": false}),
            Vmm::Served(service) => service.stats(),
        };
        let Process { pid, start_time, boot_id } = &self.guardian.process;
        json!({"stats": stats, "removed": self.config.paths.removed,
               "guardian": {"pid": pid, "start_time": start_time, "boot_id": boot_id}})
    }

    /// Refuses to stop when that would leave a VM hanging.
    fn stoppable(&self, force: bool) -> Result<(), Error> {
        let missing = match (&self.vmm, &self.image) {
            (Vmm::Served(service), _) => service.engine.missing(),
            (_, image) => image.as_ref().map_or(0, Image::size),
        };
        match self.owed().filter(|peer| !force && missing > 0 && peer.is_alive()) {
            Some(peer) => Err(Error::VmAlive { pid: peer.pid, missing }),
            None => Ok(()),
        }
    }

    /// The last event. A VMM that lives gets its memory back if it is all there, and is the guardian's to stop if not.
    fn close(&mut self, reason: Reason) -> Result<Value, Error> {
        let mut closed = json!({"reason": reason.word(), "vmm": "none"});
        if let Some(Value::Object(peer)) = self.owed().map(|peer| peer_fields(&peer)) {
            // Also one that was still introducing itself.
            closed["vmm"] = "abandoned".into();
            peer.into_iter().for_each(|(name, value)| closed[name] = value);
        }
        if let Vmm::Served(service) = &mut self.vmm {
            if let Some((event, fields)) = service.end_recording() {
                self.guardian.tell(event, fields);
            }
            closed["vmm"] = service.leave()?.into();
            if let Value::Object(stats) = service.stats() {
                stats
                    .into_iter()
                    .filter(|(name, _)| name != "state")
                    .for_each(|(name, value)| closed[name] = value);
            }
        }
        Ok(closed)
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

fn peer_fields(peer: &Process) -> Value {
    json!({"peer_pid": peer.pid, "peer_start_time": peer.start_time, "peer_boot_id": peer.boot_id})
}
