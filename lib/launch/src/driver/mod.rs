//! What differs from one VMM to the next: its program, and the words of its API.

mod firecracker;

use std::path::{Path, PathBuf};

use wire::{Document, Id};

use crate::Error;
use crate::api::Api;
use crate::machine::Machine;
use crate::section::State;

/// A VMM that can be started and spoken to. Every method but the last two speaks to a running one.
pub(crate) trait Driver: Sync {
    /// What the VMM is called in `spec.vmm` and `vm.vmm`.
    fn name(&self) -> &'static str;
    /// How its program is found.
    fn program(&self) -> &'static Program;
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

/// How a VMM's program is found: the request's `vmm_path`, the environment variable, PATH.
pub(crate) struct Program {
    pub name: &'static str,
    pub variable: &'static str,
    /// Where it comes from.
    pub hint: &'static str,
}

static ALL: &[&dyn Driver] = &[&firecracker::Firecracker];

/// The VMM that a sandbox is to have: `spec.vmm`, Firecracker where it says nothing.
pub(crate) fn of_spec(document: &Document) -> Result<&'static dyn Driver, wire::Error> {
    named("spec.vmm", document)
}

/// The VMM that a sandbox has: `vm.vmm`.
pub(crate) fn of_vm(document: &Document) -> Result<&'static dyn Driver, wire::Error> {
    named("vm.vmm", document)
}

fn named(field: &'static str, document: &Document) -> Result<&'static dyn Driver, wire::Error> {
    let name = document.find::<String>(field)?.unwrap_or_else(|| ALL[0].name().into());
    ALL.iter().find(|driver| driver.name() == name).copied().ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|driver| driver.name()).collect();
        Error::UnknownVmm { field, name, known: known.join(", ") }.into()
    })
}

impl Program {
    /// The program's file.
    pub fn find(&self, document: &Document) -> Result<PathBuf, wire::Error> {
        if let Some(path) = document.find::<PathBuf>("vmm_path")? {
            return executable("vmm_path", path).map_err(Into::into);
        }
        if let Some(path) = std::env::var_os(self.variable).filter(|path| !path.is_empty()) {
            let path = std::path::absolute(&path).unwrap_or(path.into());
            return executable(self.variable, path).map_err(Into::into);
        }
        let Self { name, variable, hint } = *self;
        in_path(name).ok_or_else(|| Error::NoVmm { program: name, variable, hint }.into())
    }
}

fn executable(field: &'static str, path: PathBuf) -> Result<PathBuf, Error> {
    let wrong = |what, source| Error::File { field, path: path.clone(), what, source };
    let metadata = path.metadata().map_err(|error| wrong("cannot be used", Some(error)))?;
    match is_executable(&metadata) {
        true => Ok(path),
        false => Err(wrong("is not a program", None)),
    }
}

fn is_executable(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
}

/// A program in PATH.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_absolute() && path.metadata().is_ok_and(|m| is_executable(&m)))
}
