//! VMMs that introduce themselves. They do so to the guardian: what a server had read alone would be lost with it, and the
//! VMM would wait for its pages for ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use sys::process::Process;
use sys::uffd::Uffd;

use super::{Guardian, Vm, stop};
use crate::handshake::{Greeting, Handshake};
use crate::orders::{Handed, peer_json};
use crate::socket;
use crate::state::State;
use crate::{Error, Region};

/// How long a VMM that has connected may take to say the rest.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How many VMMs can be served at once with the descriptors that this process and its servers may have: a server takes five
/// for each. The limit is raised as far as that is allowed.
pub(super) fn room() -> io::Result<usize> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok((most / 8).max(1) as usize)
}

impl Guardian {
    /// What VMMs are heard at: the socket if more are wanted, and those that have connected.
    pub(super) fn greets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let socket = self.socket.as_ref().filter(|_| self.wants_more());
        let handshakes = self.greeting.iter().map(|handshake| handshake.stream().as_fd());
        socket.map(|listener| listener.socket.as_fd()).into_iter().chain(handshakes)
    }

    /// How long to wait for them.
    pub(super) fn patience(&self) -> Option<Duration> {
        let first = self.greeting.iter().map(Handshake::deadline).min();
        first.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn wants_more(&self) -> bool {
        let greeting = self.greeting.len();
        self.vms.len() + greeting < self.room && self.config.wants_more_than(self.came + greeting as u64)
    }

    /// Hears all that has been said.
    pub(super) fn greet(&mut self) -> Result<(), Error> {
        self.accept()?;
        let mut index = 0;
        while let Some(handshake) = self.greeting.get_mut(index) {
            let greeting = handshake.advance();
            if matches!(greeting, Ok(Greeting::Waiting)) {
                index += 1;
                continue;
            }
            let handshake = self.greeting.remove(index);
            let taken = greeting.and_then(|greeting| match greeting {
                Greeting::Done(regions, uffd) => self.take(&handshake, regions, &uffd),
                Greeting::Waiting | Greeting::Nothing => Ok(()),
            });
            match taken {
                Ok(()) => {}
                Err(error) if self.config.clients == 1 => {
                    // The service fails with its only VMM, and stops it.
                    self.greeting.push(handshake);
                    return Err(error);
                }
                Err(error) => self.refuse(&handshake, error)?,
            }
            self.accept()?;
        }
        Ok(())
    }

    /// Takes the connections of as many VMMs as are wanted.
    fn accept(&mut self) -> Result<(), Error> {
        while let Some(listener) = self.socket.as_ref().filter(|_| self.wants_more()) {
            let path = &self.config.paths.socket;
            let Some(stream) = socket::accept(&listener.socket, path)? else { break };
            let handshake =
                Handshake::new(stream, HANDSHAKE).map_err(Error::io("look at the peer of", path))?;
            match socket::is_trusted(handshake.peer()) {
                true => self.greeting.push(handshake),
                false => {
                    let message = format!("refused a VMM of user {}: not mine", handshake.peer().uid);
                    self.tell("warning", json!({ "message": message }));
                }
            }
        }
        Ok(())
    }

    /// Has the server serve a VMM.
    fn take(&mut self, handshake: &Handshake, regions: Vec<Region>, uffd: &Uffd) -> Result<(), Error> {
        let failed = |source| Error::State { source };
        let client = self.came + 1;
        let Some(peer) = handshake.process().cloned() else {
            self.gone();
            return Ok(());
        };
        let wanted = Region::end_of(&regions);
        if wanted > self.bytes {
            // Before anything is made for that much of memory.
            return Err(Error::ImageShort { size: self.bytes, wanted });
        }
        let state = State::new(&regions).map_err(failed)?;
        state.set_vm(&peer, client);
        let copy = |fd: BorrowedFd| fd.try_clone_to_owned().map_err(failed);
        let handed = Handed { uffd: copy(uffd.as_fd())?, state: copy(state.as_fd())? };
        let fds = [handed.uffd.as_fd(), handed.state.as_fd()];
        self.give("vmm", &fds);
        let bytes: u64 = regions.iter().map(|region| region.size).sum();
        let mut connected = peer_json(&peer);
        connected["regions"] = regions.len().into();
        connected["bytes"] = bytes.into();
        connected["client"] = client.into();
        self.vms.push(Vm { peer, client, handed, state, regions });
        self.has_come();
        self.tell("connected", connected);
        Ok(())
    }

    /// Tells the server of a VMM. The next server is given all there are; so one that is gone need not hear of it, and one
    /// that does not listen is ended.
    fn give(&mut self, what: &str, fds: &[BorrowedFd]) {
        let gone = |error: &io::Error| {
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        };
        if self.server.channel.hand_over(what, json!({}), fds).is_err_and(|error| !gone(&error)) {
            let _ = self.server.child.kill();
        }
    }

    /// A VMM has ended before it could be served.
    fn gone(&mut self) {
        self.has_come();
        if self.config.clients == 1 {
            self.tell("closed", json!({"reason": "vmm_gone", "vmm": "gone"}));
            self.ended = true;
            let _ = self.server.child.kill();
        } else {
            self.give("gone", &[]);
            self.tell("left", json!({"vmm": "gone", "client": self.came}));
        }
    }

    fn has_come(&mut self) {
        self.came += 1;
        if self.came == self.config.clients
            && let Some(listener) = self.socket.take()
        {
            for vmm in socket::unheard(&listener.socket) {
                let message = "a VMM too many was stopped: it would have waited for its pages for ever";
                let stopped = stop(&vmm).is_ok();
                self.tell("warning", json!({"message": message, "peer_pid": vmm.pid, "stopped": stopped}));
            }
        }
    }

    /// Has nothing to do with one of several VMMs. It is stopped if it would wait for its pages.
    fn refuse(&mut self, handshake: &Handshake, error: Error) -> Result<(), Error> {
        let mut fields = json!({"vmm": "none"});
        if let Some(peer) = peer_of(handshake) {
            stop(&peer)?;
            fields = json!({"vmm": "stopped", "peer_pid": peer.pid});
        }
        fields["error"] = wire::Error::from(error).to_json("wrenn-uffd", "serve");
        self.tell("left", fields);
        Ok(())
    }
}

/// The VMM that would hang if nobody heard it out: one that has handed over a descriptor.
pub(super) fn peer_of(handshake: &Handshake) -> Option<Process> {
    handshake.process().filter(|_| handshake.has_descriptor()).cloned()
}
