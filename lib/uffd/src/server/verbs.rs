//! What a server answers to the verbs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use snap::Ranges;

use super::{Reason, Server, Vmm};
use crate::Error;
use crate::control::{Connection, Request};
use crate::orders::process_json;
use crate::socket;
use crate::wait::Rare;

/// How many verbs may talk to the server at once.
const CONNECTIONS: usize = 8;

impl Server {
    /// Answers the verbs that ask.
    pub(super) fn verbs(&mut self) -> Result<Option<Reason>, Error> {
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
                Ok(Some((of, _))) if of.as_ref().is_some_and(|of| *of != self.name) => {
                    let control = self.config.paths.control.clone();
                    connection.answer(Err(Error::NotRunning { control }.into()));
                }
                Ok(Some((_, Request::Stats { since, dumped }))) => {
                    connection.answer(self.stats(since.as_deref(), dumped).map_err(Into::into));
                }
                Ok(Some((_, Request::Look))) => connection.answer(Ok(self.described())),
                Ok(Some((_, Request::Stop { force }))) => {
                    let answer = self.stoppable(force).map(|()| self.described());
                    reason = answer.is_ok().then_some(Reason::Stopped).or(reason);
                    connection.answer(answer.map_err(Into::into));
                }
                Ok(Some((_, Request::Restart))) if self.orphaned => {
                    connection.answer(Err(Error::NoGuardian { pid: self.name.pid }.into()));
                }
                Ok(Some((_, Request::Restart))) => self.relief = Some(connection),
                Err(()) => {}
            }
        }
        Ok(reason)
    }

    /// What was done so far; the ranges discarded since the snapshot `since` are in their file when this returns.
    fn stats(&mut self, since: Option<&Path>, dumped: Option<PathBuf>) -> Result<Value, Error> {
        let mut removed = Ranges::new();
        if let Vmm::Served(service) = &mut self.vmm {
            // A discard that has returned was read, or it would not have returned; one under way is read here.
            service.engine.drain()?;
            removed = service.engine.removed_since(since);
            if let Some(dir) = dumped {
                service.engine.dumped(dir)?;
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

    pub(super) fn described(&mut self) -> Value {
        let mut stats = match &mut self.vmm {
            Vmm::Awaited => json!({"state": "listening", "complete": false}),
            Vmm::Greeting(..) => json!({"state": "handshake", "complete": false}),
            Vmm::Served(service) => service.stats(),
        };
        stats["server_pid"] = self.me.pid.into();
        stats["restarts"] = self.restarts.into();
        json!({"stats": stats, "removed": self.config.paths.removed,
               "service": process_json(&self.name), "server": process_json(&self.me)})
    }

    /// Refuses to stop when that would leave a VM hanging.
    fn stoppable(&self, force: bool) -> Result<(), Error> {
        let missing = match &self.vmm {
            Vmm::Served(service) => service.engine.missing(),
            _ => self.image.size(),
        };
        match self.owed().filter(|peer| !force && missing > 0 && peer.is_alive()) {
            Some(peer) => Err(Error::VmAlive { pid: peer.pid, missing }),
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
