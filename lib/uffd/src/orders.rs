//! What a guardian gives a server to begin with: two words of its command line, and descriptors.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};
use sys::process::Process;
use wire::Document;

use crate::Error;
use crate::config::Config;

/// A server's beginning.
#[derive(Debug)]
pub(crate) struct Orders {
    pub config: Config,
    /// What the service is called: the guardian, which may be dead by now.
    pub name: Process,
    /// Which image it was when the service began.
    pub image: String,
    /// How often the guardian has started a server again.
    pub restarts: u64,
    /// How many VMMs have come so far.
    pub came: u64,
    pub given: Given,
}

/// The descriptors, in this order.
#[derive(Debug)]
pub(crate) struct Given {
    /// To the guardian.
    pub channel: OwnedFd,
    /// Where the verbs ask, listening.
    pub control: OwnedFd,
    /// Where VMMs connect, listening, as long as any are wanted.
    pub socket: Option<OwnedFd>,
    /// The VMs that are served already.
    pub vms: Vec<Handed>,
}

/// A VM as it is handed from server to server: its userfaultfd and its [`State`](crate::state::State).
#[derive(Debug)]
pub(crate) struct Handed {
    pub uffd: OwnedFd,
    pub state: OwnedFd,
}

impl Orders {
    /// As two words, and descriptors to inherit.
    pub fn into_parts(self) -> ([String; 2], Vec<OwnedFd>) {
        let Given { channel, control, socket, vms } = self.given;
        let more = json!({"name": process_json(&self.name), "image": self.image, "restarts": self.restarts, "came": self.came,
                          "listens": socket.is_some(), "serves": vms.len()});
        let vms = vms.into_iter().flat_map(|Handed { uffd, state }| [uffd, state]);
        let fds = [channel, control].into_iter().chain(socket).chain(vms);
        ([self.config.to_json().to_string(), more.to_string()], fds.collect())
    }

    /// From the words; the descriptors are taken by number.
    pub fn inherited(config: &str, more: &str) -> Result<Self, wire::Error> {
        let config = Config::from_json(config)?;
        let more = parsed(more)?;
        let (listens, serves): (bool, u64) = (more.need("listens")?, more.need("serves")?);
        let count = 2 + usize::from(listens) + 2 * serves as usize;
        let fds = sys::detach::inherited(count).map_err(Error::io("take over", "what the guardian gave"))?;
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or_else(|| wire::Error::usage("a descriptor is missing"));
        Ok(Self {
            config,
            name: more.process("name")?,
            image: more.need("image")?,
            restarts: more.need("restarts")?,
            came: more.need("came")?,
            given: Given {
                channel: next()?,
                control: next()?,
                socket: listens.then(&mut next).transpose()?,
                vms: (0..serves)
                    .map(|_| Ok(Handed { uffd: next()?, state: next()? }))
                    .collect::<Result<_, wire::Error>>()?,
            },
        })
    }
}

/// The service that a server with this second word belongs to.
pub(crate) fn name_of(more: &str) -> Option<Process> {
    parsed(more).ok()?.process("name").ok()
}

fn parsed(more: &str) -> Result<Document, wire::Error> {
    let value = serde_json::from_str(more).map_err(|error| wire::Error::usage(error.to_string()))?;
    Document::from_value(value)
}

/// A process's name, as it goes into documents.
pub(crate) fn process_json(process: &Process) -> Value {
    json!({"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id})
}

/// A VMM's name, as it goes into events.
pub(crate) fn peer_json(peer: &Process) -> Value {
    json!({"peer_pid": peer.pid, "peer_start_time": peer.start_time, "peer_boot_id": peer.boot_id})
}

/// A process's name out of an answer.
pub(crate) fn process_of(value: &Value) -> Option<Process> {
    Some(Process {
        pid: value.get("pid")?.as_i64()? as i32,
        start_time: value.get("start_time")?.as_u64()?,
        boot_id: value.get("boot_id")?.as_str()?.to_owned(),
    })
}
