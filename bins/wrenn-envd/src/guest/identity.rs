//! Who this machine is: its names, its clock and its random numbers, which a copy of a guest shares with the one it was
//! copied from until the host tells it its own.

use std::{fs, io, io::Write as _, os::unix::fs::OpenOptionsExt as _};

use buffa_types::google::protobuf::Timestamp;
use nix::{
    mount::{MsFlags, mount},
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
    unistd::{gethostname, sethostname},
};
use serde::Serialize;

use super::random;
use crate::log::say;

const MACHINE_ID: &str = "/etc/machine-id";
/// In memory: stands in for it on a root that is read-only.
const MACHINE_ID_IN_RUN: &str = "/run/machine-id";

/// What the host wants this machine to be. What is absent stays as it is.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    pub hostname: Option<&'a str>,
    /// 32 hexadecimal digits.
    pub machine_id: Option<&'a str>,
    pub time: Option<&'a Timestamp>,
    /// Empty when there is none.
    pub entropy: &'a [u8],
}

/// What is true of this machine, as the kernel tells it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    hostname: String,
    machine_id: Option<String>,
    clock: Timestamp,
    /// Whether the random numbers were reseeded by this request.
    reseeded: bool,
}

impl Identity {
    pub fn now(reseeded: bool) -> Self {
        let hostname = gethostname().unwrap_or_default().to_string_lossy().into_owned();
        let machine_id = fs::read_to_string(MACHINE_ID).ok().map(|id| id.trim().to_owned());
        // Last: the answer leaves at once.
        let clock = clock_gettime(ClockId::CLOCK_REALTIME).map(|now| (now.tv_sec(), now.tv_nsec() as i32));
        let (seconds, nanos) = clock.unwrap_or_default();
        Self { hostname, machine_id, clock: Timestamp::from_unix(seconds, nanos), reseeded }
    }
}

/// Makes this machine the one the host wants, the clock last. Every part is tried; one that fails is said, and the answer
/// shows it: the host decides what it cannot do without.
pub fn become_it(wanted: &Wanted) -> Identity {
    let tried = |what: &str, done: io::Result<()>| done.inspect_err(|error| say!("{what}: {error}")).is_ok();
    let reseeded = !wanted.entropy.is_empty() && tried("random numbers", random::reseed(wanted.entropy));
    if let Some(id) = wanted.machine_id {
        tried(MACHINE_ID, set_machine_id(id));
    }
    if let Some(name) = wanted.hostname {
        tried("hostname", sethostname(name).map_err(io::Error::from));
    }
    if let Some(time) = wanted.time {
        let time = TimeSpec::new(time.seconds, time.nanos.into());
        tried("clock", clock_settime(ClockId::CLOCK_REALTIME, time).map_err(io::Error::from));
    }
    Identity::now(reseeded)
}

fn set_machine_id(id: &str) -> io::Result<()> {
    match write_line(MACHINE_ID, id) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            write_line(MACHINE_ID_IN_RUN, id)?;
            // The next one is written through this.
            mount(Some(MACHINE_ID_IN_RUN), MACHINE_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        }
        done => done,
    }
}

/// In one write and in place: a reader never finds less than a whole one, and a mount on it stays.
fn write_line(path: &str, line: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o444).open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.set_len(line.len() as u64 + 1)
}
