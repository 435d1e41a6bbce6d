//! What a server answers to the verbs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use snap::Ranges;
use sys::process::Process;

use super::session::{PATIENCE, Running, Session, Silent, ask_all};
use super::{Reason, Server};
use crate::Error;
use crate::channel::object;
use crate::control::{Connection, Request};
use crate::orders::process_json;
use crate::socket;
use crate::wait::Rare;

/// The VMMs that introduce themselves.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    /// Those that have handed over their descriptor.
    pub handed: Vec<Process>,
    /// Whether there are others.
    pub others: bool,
}

/// How many verbs may talk to the server at once.
const CONNECTIONS: usize = 8;

impl Server {
    /// Hears the verbs that ask.
    pub(super) fn verbs(&mut self) -> Result<Option<Reason>, Error> {
        let failed = |source| Error::Events { source };
        while let Some(stream) = self.control.accept()? {
            if sys::fdpass::peer(&stream).is_ok_and(socket::is_trusted) {
                if self.connections.len() == CONNECTIONS {
                    self.connections.remove(0);
                }
                self.waiter.add(&stream, Rare::Control).map_err(failed)?;
                self.connections.push(Connection::new(stream));
            }
        }
        let mut asks = false;
        for mut connection in std::mem::take(&mut self.connections) {
            match connection.request() {
                Ok(None) => self.connections.push(connection),
                Ok(Some((of, _))) if of.as_ref().is_some_and(|of| *of != self.name) => {
                    let control = self.common.config.paths.control.clone();
                    connection.answer(Err(Error::NotRunning { control }.into()));
                }
                Ok(Some((_, request))) => {
                    self.waiter.forget(&connection.stream).map_err(failed)?;
                    if self.asked.len() == CONNECTIONS {
                        self.asked.remove(0);
                    }
                    self.asked.push((self.syncs + 1, connection, request));
                    asks = true;
                }
                Err(()) => {}
            }
        }
        if !asks {
            return Ok(None);
        }
        self.syncs += 1;
        // A VMM that has connected, and said who it is, before somebody asked counts: the guardian knows.
        let sync = json!({"sync": self.syncs});
        let waits = self.may_come() && self.common.guardian.hand_over("sync", sync, &[]).is_ok();
        Ok(if waits { None } else { self.answer_asked(u64::MAX, &Greeting::default()) })
    }

    /// Answers those who asked before this was known.
    pub(super) fn answer_asked(&mut self, synced: u64, greeting: &Greeting) -> Option<Reason> {
        let (asked, later): (Vec<_>, _) =
            std::mem::take(&mut self.asked).into_iter().partition(|(sync, ..)| *sync <= synced);
        self.asked = later;
        let mut reason = None;
        for (_, mut connection, request) in asked {
            let answer = match request {
                Request::Stats { vm, since, dumped } => self.stats(vm.as_ref(), since, dumped, greeting),
                Request::Look { vm } => self.look(vm.as_ref(), greeting).map(|stats| self.answer(stats)),
                Request::Stop { force } => self.stoppable(force, greeting).map(|()| {
                    reason = Some(Reason::Stopped);
                    self.answer(Map::new())
                }),
                Request::Restart if self.orphaned => Err(Error::NoGuardian { pid: self.name.pid }),
                Request::Restart => match self.replaceable() {
                    Ok(()) => {
                        self.relief = Some(connection);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            connection.answer(answer.map_err(Into::into));
        }
        reason
    }

    /// What was done so far; the ranges discarded since the snapshot `since` are in their file when this returns.
    fn stats(
        &self,
        vm: Option<&Process>,
        since: Option<PathBuf>,
        dumped: Option<PathBuf>,
        greeting: &Greeting,
    ) -> Result<Value, Error> {
        let is_one = self.is_for_one() || vm.is_some();
        if !is_one && dumped.is_some() {
            return Err(Error::WhichVm);
        }
        let (ranges, stats) = match self.session(vm).map(|session| session.filter(|_| is_one))? {
            Some(session) => {
                let both = move |it: &mut Session| {
                    it.removed(since.as_deref(), dumped).map(|ranges| (ranges, it.stats()))
                };
                self.heard(session.ask(both))??
            }
            None => (Ranges::new(), self.look(vm, greeting)?),
        };
        let removed = is_one.then(|| self.removed(vm));
        if let Some(path) = &removed {
            replace(path, format!("{}\n", ranges.to_json()).as_bytes())?;
        }
        let told = stats.iter().filter(|(name, _)| *name != "vms");
        let told = told.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.common.guardian.tell("stats", Value::Object(told));
        let mut answer = self.answer(stats);
        answer["removed"] = json!(removed);
        Ok(answer)
    }

    /// What was done so far: for this VM, or the only one; else for each.
    fn look(&self, vm: Option<&Process>, greeting: &Greeting) -> Result<Map<String, Value>, Error> {
        let idle = if greeting.others || !greeting.handed.is_empty() { "handshake" } else { "listening" };
        let one = |session: &Running| self.heard(session.ask(Session::stats));
        if self.is_for_one() || vm.is_some() {
            let nobody = || object(json!({"state": idle, "complete": false}));
            return self.session(vm)?.map_or_else(|| Ok(nobody()), one);
        }
        let each = |(session, stats): (&Running, _)| match stats {
            Ok(stats) => Some(stats),
            Err(Silent::Busy) => Some(object(json!({"state": "busy", "peer_pid": session.peer.pid}))),
            // One that goes meanwhile is not there any more.
            Err(Silent::Over) => None,
        };
        let vms: Vec<_> = ask_all(&self.sessions, Session::stats).filter_map(each).collect();
        let missing = |vm: &Map<String, Value>| vm.get("missing_bytes")?.as_u64();
        // Not known as long as one is busy.
        let missing: Option<u64> = vms.iter().map(missing).sum();
        let state = if vms.is_empty() { idle } else { "serving" };
        Ok(object(json!({"state": state, "came": self.came, "missing_bytes": missing,
                         "complete": missing == Some(0) && !self.may_come(), "vms": vms})))
    }

    /// The session of this VM, or the only one.
    fn session(&self, vm: Option<&Process>) -> Result<Option<&Running>, Error> {
        match vm.filter(|_| !self.is_for_one()) {
            None => Ok(self.sessions.first()),
            Some(vm) => {
                let session = self.sessions.iter().find(|session| session.peer == *vm);
                session.map(Some).ok_or(Error::NotServed { pid: vm.pid })
            }
        }
    }

    /// The answer of a session that must give one.
    fn heard<T>(&self, answer: Result<T, Silent>) -> Result<T, Error> {
        let control = || self.common.config.paths.control.clone();
        answer.map_err(|silent| match silent {
            // Soon the server has ended, too.
            Silent::Over => Error::NotRunning { control: control() },
            Silent::Busy => Error::NoAnswer { control: control(), seconds: PATIENCE.as_secs() },
        })
    }

    /// The VMs that lack some of their memory, with how much, in bytes.
    fn incomplete(&self) -> Result<Vec<(i32, u64)>, Error> {
        let mut incomplete = Vec::new();
        for (session, missing) in ask_all(&self.sessions, Session::missing) {
            match missing {
                Ok(Some(missing)) if missing > 0 => incomplete.push((session.peer.pid, missing)),
                Ok(_) | Err(Silent::Over) => {}
                busy @ Err(Silent::Busy) => drop(self.heard(busy)?),
            }
        }
        Ok(incomplete)
    }

    /// An answer with these `stats`.
    pub(super) fn answer(&self, mut stats: Map<String, Value>) -> Value {
        stats.insert("server_pid".into(), self.me.pid.into());
        stats.insert("restarts".into(), self.restarts.into());
        json!({"stats": stats, "service": process_json(&self.name), "server": process_json(&self.me)})
    }

    /// Where the discards of this VM are listed, or those of the only one.
    pub(super) fn removed(&self, vm: Option<&Process>) -> PathBuf {
        let paths = &self.common.config.paths;
        match vm.filter(|_| !self.is_for_one()) {
            None => paths.removed.clone(),
            Some(vm) => paths.removed_of(vm.pid),
        }
    }

    /// Refuses to make room for another server that would not find the image.
    fn replaceable(&self) -> Result<(), Error> {
        if !self.may_come() && self.incomplete()?.is_empty() {
            return Ok(());
        }
        let source = &self.common.config.source;
        match source.check()? == self.image {
            true => Ok(()),
            false => Err(Error::ImageReplaced { path: source.path().to_owned() }),
        }
    }

    /// Refuses to stop when that would leave a VM hanging.
    fn stoppable(&self, force: bool, greeting: &Greeting) -> Result<(), Error> {
        if force {
            return Ok(());
        }
        let mut greeting = greeting.handed.iter().filter(|vmm| vmm.is_alive());
        let greeting = greeting.next().map(|vmm| (vmm.pid, self.common.image.size()));
        match self.incomplete()?.first().copied().or(greeting) {
            Some((pid, missing)) => Err(Error::VmAlive { pid, missing }),
            None => Ok(()),
        }
    }
}

/// Writes a file beside its name and renames it: who reads it sees all of it or the one before.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let beside = wire::partial(path);
    let done = fs::write(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    done.map_err(|source| {
        let _ = fs::remove_file(&beside);
        Error::io("write", path)(source)
    })
}
