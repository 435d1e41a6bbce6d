//! What differs from one VMM to the next: its program, the words of its API, and what it saves where.

mod cloud_hypervisor;
mod firecracker;
mod program;

use std::path::{Path, PathBuf};

use wire::{Document, Id};

use crate::api::Api;
use crate::handed::Handed;
use crate::machine::{DISK, Machine};
use crate::section::State;
use crate::{Error, WORKDIR};

pub(crate) use program::{Place, Program, beside, in_path};

/// A VMM that can be started and spoken to.
pub(crate) trait Driver: Sync {
    /// What the VMM is called in `spec.vmm` and `vm.vmm`.
    fn name(&self) -> &'static str;
    /// How its program is found.
    fn program(&self) -> &Program;
    /// Its command line: the API socket at `socket`, nothing configured yet.
    fn arguments(&self, id: &Id, socket: &Path) -> Vec<String>;
    /// What it can do that not every VMM can.
    fn abilities(&self) -> Abilities;

    /// Names of the VMM's state in a snapshot's directory. A directory that holds them all is a snapshot of this VMM.
    fn state_files(&self) -> &'static [&'static str];
    /// Name of the plain memory file in a snapshot's directory.
    fn memory_file(&self) -> &'static str;
    /// Where the root disk of the snapshot in `dir` has to be, if that is a place where it can be shown.
    fn disk_place(&self, _dir: &Path) -> Result<PathBuf, Error> {
        Ok(Path::new(WORKDIR).join(DISK))
    }
    /// Looks at the rest of a snapshot before anything is started for it.
    fn examine(&self, _: &Load) -> Result<(), Error> {
        Ok(())
    }

    /// Its version.
    fn version(&self, api: &mut Api) -> Result<String, Error>;
    /// Configures the machine and starts its vCPUs.
    fn boot(&self, api: &mut Api, machine: &Machine) -> Result<(), Error>;
    /// Loads a snapshot and leaves the VM paused, logging dirty pages from here on where it can. `root` is the VMM's
    /// root directory as we reach it: its private /tmp is below.
    fn load(&self, api: &mut Api, load: &Load, root: &Path) -> Result<(), Error>;
    /// Whether the vCPUs run.
    fn state(&self, api: &mut Api) -> Result<State, Error>;
    /// Stops the vCPUs, which run.
    fn pause(&self, api: &mut Api) -> Result<(), Error>;
    /// Lets the vCPUs run. Running ones go on.
    fn resume(&self, api: &mut Api) -> Result<(), Error>;
    /// Writes the paused VM's state and its memory, the latter as [`RAW`], and forgets which pages were dirty.
    fn snapshot(&self, api: &mut Api, dump: &Dump) -> Result<(), Error>;
    /// Asks the guest's balloon for this size, MiB.
    fn set_balloon(&self, api: &mut Api, mib: u64) -> Result<(), Error>;
    /// The balloon's size, MiB: asked for, and reached.
    fn balloon(&self, api: &mut Api) -> Result<(u64, u64), Error>;
}

/// What one VMM can do and another cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// It logs dirty pages: a snapshot may be a Diff. Without it every snapshot is of kind `full`, all of memory.
    pub diffs: bool,
    /// A restored VM takes its memory from a page server, `wrenn-uffd serve`. Without it the VMM reads a plain file, and
    /// goes on reading behind the guest's back until it has all of it: before that no snapshot can be taken.
    pub page_server: bool,
}

/// A snapshot to load.
pub(crate) struct Load {
    /// Its directory.
    pub dir: Handed,
    /// Where the memory is: the directory, and the name in it,
    pub memory: (Handed, PathBuf),
    /// which is that of a page server's socket; a file that holds all of it and must not change otherwise.
    pub served: bool,
    /// Whether memory is to arrive as it is touched.
    pub lazy: bool,
    /// The tap that the sandbox has in its network namespace.
    pub tap: Option<String>,
}

/// A snapshot to write.
pub(crate) struct Dump {
    /// Its directory, in which there is no file of any name that will be written.
    pub dir: Handed,
    /// Only the pages written since the last dump or load; holes elsewhere.
    pub diff: bool,
}

/// The raw memory's name in a snapshot's directory until it is packed.
pub(crate) const RAW: &str = "memfile.raw";

/// Every VMM there is a driver for, in the order in which they are preferred.
pub(crate) static ALL: &[&dyn Driver] =
    &[&firecracker::FIRECRACKER, &cloud_hypervisor::CloudHypervisor, &firecracker::WRENN_VMM];

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
