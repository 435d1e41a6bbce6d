//! The guardian: the server's parent. It holds a copy of all that the server needs, and when the server dies it starts
//! another one on that; only when this fails it stops the VMM, rather than let it hang.
//!
//! `serve` in the foreground is the guardian itself and prints the server's events; a detached guardian writes them to the
//! log ([`detached`]). The service goes by the guardian's name, as servers come and go.

mod child;
pub(crate) mod detached;
mod greetings;
mod vm;

use std::collections::VecDeque;
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sys::listener::Listener;
use sys::process::{Process, any_readable_within, readable};

use crate::Error;
use crate::channel::{Event, Heard, object};
use crate::config::Config;
use crate::control::refusal;
use crate::handshake::Handshake;
use crate::orders::process_json;
use crate::socket;
use child::Server;
use greetings::peer_of;
use vm::Vm;

/// How long a server may take to end when it is told to.
const ENDING: Duration = Duration::from_secs(3);

/// How often in succession a server may be started in vain: it died before it had filled a page or served for a while.
const IN_VAIN: u32 = 3;

/// How many of the VMMs that introduce themselves a server is told the names of.
const NAMED: usize = 64;

/// For a while.
const A_WHILE: Duration = Duration::from_secs(10);

/// A service: its server, and what the next one would need.
pub(crate) struct Guardian {
    config: Config,
    name: Process,
    /// Which image it serves.
    image: String,
    /// How large that is, once a server has said so.
    bytes: u64,
    /// At its end when whoever follows the service wants it to end.
    follower: Option<PipeReader>,
    /// How many VMMs it can serve at once.
    room: usize,
    control: Option<Listener>,
    /// Where a VMM connects. It goes when the last one has: another one is refused by the kernel rather than left waiting.
    socket: Option<Listener>,
    /// The VMMs that have connected and not said everything yet.
    greeting: Vec<Handshake>,
    server: Server,
    vms: Vec<Vm>,
    /// What others are to know first.
    untold: VecDeque<Event>,
    /// How many pages those VMs had been given that have left.
    departed: u64,
    restarts: u64,
    /// How many VMMs have come so far.
    came: u64,
    in_vain: u32,
    listens: bool,
    /// Since when the server has been asked to end.
    told: Option<Instant>,
    /// Whether it has said how it ended.
    ended: bool,
    /// Whether it ends to be started again.
    asked: bool,
    /// Why there is none that says anything, and since when.
    restarting: Option<(String, Instant)>,
}

/// How a service ended.
pub(crate) struct Ending {
    /// What went wrong, if it did not end as it should.
    pub error: Option<wire::Error>,
    /// The VMMs that had to be stopped.
    pub stopped: Vec<i32>,
}

impl Guardian {
    /// Starts a service: its sockets, and a server. It ends when the pipe `follower` does.
    pub fn start(config: Config, follower: Option<PipeReader>) -> Result<Self, Error> {
        let name = Process::current().map_err(Error::io("read", "/proc/self/stat"))?;
        let room = greetings::room().map_err(Error::io("look at", "the limit of open files"))?;
        // A VMM that finds a socket is not to be disappointed.
        let image = config.source.check()?;
        let control = socket::bind(&config.paths.control)?;
        let listener = socket::bind(&config.paths.socket)?;
        let server = Server::start(&config, (&name, &image), (0, 0, 0), (&control, Some(&listener)), &[])?;
        Ok(Self {
            config,
            name,
            image,
            bytes: 0,
            follower,
            room,
            control: Some(control),
            socket: Some(listener),
            server,
            vms: Vec::new(),
            greeting: Vec::new(),
            untold: VecDeque::new(),
            departed: 0,
            restarts: 0,
            came: 0,
            in_vain: 0,
            listens: false,
            told: None,
            ended: false,
            asked: false,
            restarting: None,
        })
    }

    /// Follows the service to its end. `each` hears of all that happens.
    pub fn follow(mut self, mut each: impl FnMut(&mut Self, Event)) -> Ending {
        let mut failed = None;
        loop {
            match self.next() {
                Ok(Some(event)) => {
                    if event.name == "failed" {
                        failed = Some(refusal(event.fields.get("error").unwrap_or(&Value::Null)));
                    }
                    each(&mut self, event);
                }
                Ok(None) => break,
                Err(error) => {
                    failed = Some(error.into());
                    break;
                }
            }
        }
        self.finish(failed)
    }

    /// The next event; `None` when the service has ended. A signal to this process is passed on to the server, once.
    fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.untold.pop_front() {
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            self.wait()?;
            if !self.untold.is_empty() {
                continue;
            }
            match self.server.channel.hear()? {
                Heard::Event(event) => {
                    if let Some(event) = self.heard(event)? {
                        return Ok(Some(event));
                    }
                }
                Heard::Nothing => {}
                Heard::Ended if !self.start_again()? => return Ok(None),
                Heard::Ended => {}
            }
        }
    }

    /// Waits until the server says something, or ends, or there is something to tell. A server that was told to end is killed if
    /// it takes too long.
    fn wait(&mut self) -> Result<(), Error> {
        let failed = || Error::io("listen to", "the page server");
        while self.told.is_none() {
            let rare = sys::signals::fd().into_iter().chain(self.follower.as_ref().map(AsFd::as_fd));
            let fds: Vec<_> = [self.server.channel.as_fd()].into_iter().chain(rare).collect();
            let rare = fds.len();
            // Nobody is told of a VMM before it is told that somebody listens.
            let fds: Vec<_> = fds.into_iter().chain(self.greets().filter(|_| self.listens)).collect();
            let ready = any_readable_within(&fds, self.patience()).map_err(failed())?;
            if ready[0] {
                return Ok(());
            }
            // A signal that another thread has read is the follower's.
            if sys::signals::pending().is_some() || self.follower.is_some() && ready[rare - 1] {
                self.terminate();
                break;
            }
            if self.listens {
                self.greet()?;
            }
            if !self.untold.is_empty() {
                return Ok(());
            }
        }
        let left = self.told.map_or(ENDING, |told| ENDING.saturating_sub(told.elapsed()));
        if !readable(&self.server.channel, left).map_err(failed())? {
            let _ = self.server.child.kill();
        }
        Ok(())
    }

    /// Asks the server to end. It is killed if it does not.
    pub fn terminate(&mut self) {
        if self.told.is_none() {
            self.told = Some(Instant::now());
            let _ = self.server.process.signal(Signal::SIGTERM);
        }
    }

    /// Takes note of an event. Gives what others are to know.
    fn heard(&mut self, event: Event) -> Result<Option<Event>, Error> {
        let Event { name, mut fields, fds } = event;
        match name.as_str() {
            "listening" => {
                self.listens = true;
                self.bytes = fields.get("bytes").and_then(Value::as_u64).unwrap_or(0);
                let mut own = object(json!({"socket": self.config.paths.socket,
                                            "control": self.config.paths.control}));
                own.extend(object(process_json(&self.name)));
                fields = own.into_iter().chain(fields).collect();
            }
            "ready" => {
                let Some((reason, since)) = self.restarting.take() else { return Ok(None) };
                let ms = wire::ms(since.elapsed());
                let fields = json!({"reason": reason, "ms": ms, "restarts": self.restarts,
                                    "server_pid": self.server.process.pid});
                return Ok(Some(Event { name: "restarted".into(), fields: object(fields), fds }));
            }
            "sync" => {
                // Whoever has said everything before the server was asked is known to it before it answers.
                self.greet()?;
                let greeting: Vec<_> = self.greeting.iter().filter_map(peer_of).take(NAMED).collect();
                let greeting: Vec<_> = greeting.iter().map(process_json).collect();
                let others = self.greeting.len() - greeting.len();
                let synced = json!({"sync": fields.get("sync"), "greeting": greeting, "others": others});
                self.server.channel.tell("synced", synced);
                return Ok(None);
            }
            "left" => {
                let client = fields.get("client").and_then(Value::as_u64);
                let index = self.vms.iter().position(|vm| Some(vm.client) == client);
                let left = index.map(|index| self.vms.remove(index));
                self.departed += left.as_ref().map_or(0, Vm::filled);
                let left = left.map(|vm| vm.peer);
                // Gone, or released: it needs nobody.
                let hangs = fields.get("vmm").and_then(Value::as_str) == Some("abandoned");
                if let Some(vmm) = left.filter(|vmm| hangs && vmm.is_alive()) {
                    stop(&vmm)?;
                    fields["vmm"] = "stopped".into();
                }
            }
            "handover" => {
                self.asked = true;
                return Ok(None);
            }
            "failed" => self.ended = true,
            "closed" => {
                self.ended = true;
                if matches!(fields.get("vmm").and_then(Value::as_str), Some("gone" | "released")) {
                    self.vms.clear();
                }
            }
            _ => {}
        }
        Ok(Some(Event { name, fields, fds }))
    }

    /// The server has ended without a word, or to be replaced: starts another one, unless there is no use. Gives whether it
    /// did.
    fn start_again(&mut self) -> Result<bool, Error> {
        let died = Instant::now();
        let (how, done) = self.server.how();
        let asked = std::mem::take(&mut self.asked);
        if self.told.is_some() || done && !asked {
            // It was to end, or has, and could not say so.
            self.ended = true;
            let reason = if self.told.is_some() { "signal" } else { "stopped" };
            self.tell("closed", json!({"reason": reason, "vmm": "none"}));
            return Ok(true);
        }
        if asked || self.filled() > self.server.filled || self.server.started.elapsed() > A_WHILE {
            self.in_vain = 0;
        } else {
            self.in_vain += 1;
        }
        // One of several that is gone is no reason for the others to end.
        if self.config.clients != 1 {
            self.let_go();
        }
        let lost = self.vms.iter().any(|vm| !vm.peer.is_alive());
        if asked && lost {
            // It has ended meanwhile, and needs no other server.
            self.ended = true;
            self.tell("closed", json!({"reason": "vmm_gone", "vmm": "gone"}));
            return Ok(true);
        }
        if !self.listens || lost || self.in_vain > IN_VAIN {
            let again = if self.in_vain > IN_VAIN { ", as did the ones before it" } else { "" };
            return Err(Error::Died { how: format!("{how}{again}") });
        }
        self.restarts += 1;
        // Since the first of those that died without having said anything.
        self.restarting.get_or_insert((if asked { "asked".into() } else { how }, died));
        let Some(control) = &self.control else { return Ok(false) };
        let counts = (self.restarts, self.came, self.filled());
        let names = (&self.name, self.image.as_str());
        let sockets = (control, self.socket.as_ref());
        self.server = Server::start(&self.config, names, counts, sockets, &self.vms)?;
        Ok(true)
    }

    /// Lets go of the VMMs that have died with their server.
    fn let_go(&mut self) {
        let (vms, gone): (_, Vec<_>) =
            std::mem::take(&mut self.vms).into_iter().partition(|vm| vm.peer.is_alive());
        self.vms = vms;
        for vm in gone {
            let _ = socket::remove(&self.config.paths.removed_of(vm.peer.pid));
            self.departed += vm.filled();
            self.tell("left", json!({"vmm": "gone", "peer_pid": vm.peer.pid, "client": vm.client}));
        }
    }

    /// How many pages all servers have filled.
    fn filled(&self) -> u64 {
        self.departed + self.vms.iter().map(Vm::filled).sum::<u64>()
    }

    /// Tells of something that the server has not told.
    fn tell(&mut self, event: &str, fields: Value) {
        self.untold.push_back(Event { name: event.into(), fields: object(fields), fds: Vec::new() });
    }

    /// Waits for the server's end, and stops a VMM that it left behind, unless that has all of its memory. `failed` is what is
    /// known to have gone wrong.
    fn finish(mut self, failed: Option<wire::Error>) -> Ending {
        // Nobody who asks from here on is to wait for an answer.
        let unheard = self.socket.take().map_or(Vec::new(), |listener| socket::unheard(&listener.socket));
        let mut greeting = std::mem::take(&mut self.greeting);
        greeting.iter_mut().for_each(Handshake::cut_off);
        self.control = None;
        let _ = self.server.child.kill();
        let _ = self.server.child.wait();
        for vm in &self.vms {
            let _ = socket::remove(&self.config.paths.removed_of(vm.peer.pid));
        }
        let mut ending = Ending { error: failed, stopped: Vec::new() };
        let hangs = |vm: Vm| {
            let peer = vm.peer.clone();
            let released = peer.is_alive() && vm.release().unwrap_or(false);
            (!released).then_some(peer)
        };
        let left = std::mem::take(&mut self.vms).into_iter().filter_map(hangs);
        let left = left.chain(greeting.iter().filter_map(peer_of)).chain(unheard);
        for vmm in left.filter(Process::is_alive) {
            match stop(&vmm) {
                Ok(()) => ending.stopped.push(vmm.pid),
                Err(error) => {
                    let failed = wire::Error::from(error);
                    ending.error = Some(match ending.error {
                        Some(error) => error.absorb(failed),
                        None => failed,
                    });
                }
            }
        }
        if let Some(error) = &mut ending.error {
            let stopped = |pid| format!("the VMM, pid {pid}, was stopped, as it would have hung");
            error.detail.extend(ending.stopped.iter().map(stopped));
        }
        ending
    }
}

/// Stops a VMM that would hang.
fn stop(vmm: &Process) -> Result<(), Error> {
    vmm.end(Duration::ZERO).map_err(Error::io("stop the VMM", vmm.pid.to_string()))
}
