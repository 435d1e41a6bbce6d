//! What differs from one VMM to the next: its program, and the words of its API.

mod firecracker;
mod program;

use std::path::{Path, PathBuf};

use wire::{Document, Id};

use crate::Error;
use crate::api::Api;
use crate::machine::Machine;
use crate::section::State;

pub(crate) use program::{Place, Program, beside, in_path};

/// A VMM that can be started and spoken to. Every method but the last two speaks to a running one.
pub(crate) trait Driver: Sync {
    /// What the VMM is called in `spec.vmm` and `vm.vmm`.
    fn name(&self) -> &'static str;
    /// How its program is found.
    fn program(&self) -> &Program;
    /// Its command line: the API socket at `socket`, nothing configured yet.
    fn arguments(&self, id: &Id, socket: &Path) -> Vec<String>;

    /// Its version.
    fn version(&self, api: &mut Api) -> Result<String, Error>;
    /// Configures the machine and starts its vCPUs.
    fn boot(&self, api: &mut Api, machine: &Machine) -> Result<(), Error>;
    /// Loads a snapshot and leaves the VM paused, logging dirty pages from here on.
    fn load(&self, api: &mut Api, load: &Load) -> Result<(), Error>;
    /// Whether the vCPUs run.
    fn state(&self, api: &mut Api) -> Result<State, Error>;
    /// Stops the vCPUs. Stopped ones stay so.
    fn pause(&self, api: &mut Api) -> Result<(), Error>;
    /// Lets the vCPUs run. Running ones go on.
    fn resume(&self, api: &mut Api) -> Result<(), Error>;
    /// Writes the paused VM's state and memory, and forgets which pages were dirty.
    fn snapshot(&self, api: &mut Api, dump: &Dump) -> Result<(), Error>;
    /// Asks the guest's balloon for this size, MiB.
    fn set_balloon(&self, api: &mut Api, mib: u64) -> Result<(), Error>;
    /// The balloon's size, MiB: asked for, and reached.
    fn balloon(&self, api: &mut Api) -> Result<(u64, u64), Error>;

    /// Name of the VMM's state in a snapshot's directory.
    fn state_file(&self) -> &'static str;
    /// Name of the plain memory file in a snapshot's directory.
    fn memory_file(&self) -> &'static str;
}

/// A snapshot to load. The paths are the VMM's.
pub(crate) struct Load {
    pub state: PathBuf,
    pub memory: Memory,
}

/// Where a loaded VM's memory comes from.
pub(crate) enum Memory {
    /// A page server's socket.
    Served(PathBuf),
    /// A file that holds all of it and must not change while the VM lives.
    File(PathBuf),
}

/// A snapshot to write. The paths are the VMM's, the files do not exist.
pub(crate) struct Dump {
    pub state: PathBuf,
    pub memory: PathBuf,
    /// Only the pages written since the last dump or load; holes elsewhere.
    pub diff: bool,
}

/// Every VMM there is a driver for, in the order in which they are preferred.
pub(crate) static ALL: &[&dyn Driver] = &[&firecracker::FIRECRACKER, &firecracker::WRENN_VMM];

/// The VMM that a sandbox is to have: `spec.vmm`; `None` where that says nothing.
pub(crate) fn of_spec(document: &Document) -> Result<Option<&'static dyn Driver>, wire::Error> {
    named("spec.vmm", document)
}

/// The VMM that a sandbox has: `vm.vmm`. (A section made by hand, without it, is Firecracker's.)
pub(crate) fn of_vm(document: &Document) -> Result<&'static dyn Driver, wire::Error> {
    Ok(named("vm.vmm", document)?.unwrap_or(ALL[0]))
}

fn named(field: &'static str, document: &Document) -> Result<Option<&'static dyn Driver>, wire::Error> {
    let Some(name) = document.find::<String>(field)? else { return Ok(None) };
    let found = ALL.iter().find(|driver| driver.name() == name).copied();
    let known = || ALL.iter().map(|driver| driver.name()).collect::<Vec<_>>().join(", ");
    Ok(Some(found.ok_or_else(|| Error::UnknownVmm { field, name, known: known() })?))
}
