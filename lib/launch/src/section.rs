//! The document's section `vm`: a running VMM by process, socket and state.

use std::path::PathBuf;
use std::time::Duration;

use sys::process::Process;
use wire::{Document, Host, Id, Value, json};

use crate::Error;
use crate::api::Api;
use crate::driver::{self, Driver};
use crate::owner;

/// How long a process may take to end once it has begun to: time for many gigabytes.
const ENDING: Duration = Duration::from_secs(10);

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still; the VMM answers.
    Paused,
}

impl State {
    /// The word in `vm.state`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// A VMM as its document describes it.
pub(crate) struct Vm {
    pub driver: &'static dyn Driver,
    pub process: Process,
    pub api: PathBuf,
}

impl Vm {
    /// The VMM that the document names. Nothing is checked against the host.
    pub fn read(document: &Document) -> Result<Self, wire::Error> {
        Ok(Self {
            driver: driver::of_vm(document)?,
            process: document.process("vm")?,
            api: document.fields("vm").need("api")?,
        })
    }

    /// Whether the process still runs and carries this sandbox's mark.
    ///
    /// # Errors
    /// [`Error::Foreign`] when it runs and is not this sandbox's VMM.
    pub fn is_alive(&self, host: &Host, id: &Id) -> Result<bool, Error> {
        if !self.process.is_alive() {
            return Ok(false);
        }
        if owner::of_pid(self.process.pid).is_some_and(|mark| mark == owner::mark(host, id)) {
            return Ok(true);
        }
        // One that is ending has no environment any more, and a while to go: its memory is being taken apart.
        let limit = if owner::is_ending(self.process.pid) { ENDING } else { Duration::ZERO };
        if self.has_ended(limit)? {
            return Ok(false);
        }
        Err(Error::Foreign { id: id.to_string(), what: format!("process {}", self.process.pid) })
    }

    fn has_ended(&self, limit: Duration) -> Result<bool, Error> {
        self.process.wait(limit).map_err(Error::io("wait for", format!("/proc/{}", self.process.pid)))
    }

    /// Speaks to the VMM.
    ///
    /// # Errors
    /// [`Error::Gone`] when it has ended; [`Error::Foreign`] when process or socket are somebody else's.
    pub fn connect(&self, host: &Host, id: &Id) -> Result<Api, Error> {
        let gone = || Error::Gone { id: id.to_string(), pid: self.process.pid };
        if !self.is_alive(host, id)? {
            return Err(gone());
        }
        let api = match Api::connect(&self.api) {
            Ok(api) => api,
            Err(_) if self.has_ended(Duration::from_secs(1))? => return Err(gone()),
            Err(source) => return Err(Error::Io { what: "connect to", path: self.api.clone(), source }),
        };
        if api.peer_pid() != Some(self.process.pid) {
            return Err(Error::Foreign { id: id.to_string(), what: self.api.display().to_string() });
        }
        Ok(api)
    }
}

/// A process in the form documents have, to be put into a section.
pub(crate) fn process_fields(process: &Process) -> [(&'static str, Value); 3] {
    [
        ("pid", json!(process.pid)),
        ("start_time", json!(process.start_time)),
        ("boot_id", json!(process.boot_id)),
    ]
}
