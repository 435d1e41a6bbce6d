//! `wrenn-launch restore`: a fresh VMM that loads a snapshot, its memory arriving as it is touched, and stays paused.

use std::fs;
use std::path::{Path, PathBuf};

use wire::{Call, Document, Reply};

use crate::Error;
use crate::choose::{Choice, for_snapshot};
use crate::driver::{Driver, Load, Memory};
use crate::handed::Handed;
use crate::machine::{DISK, Net, disk};
use crate::runfiles::Base;
use crate::section::State;
use crate::start::start;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let snapshot = Snapshot::read(call.document)?;
    let shown = vec![(disk(call.document)?, DISK.to_owned())];
    let netns = Net::find(call.document)?.map(|net| net.netns);

    let mut vmm = start(call.host, &id, snapshot.choice, netns, shown, call.undo)?;
    let (dir, memory) = (Handed::dir(&snapshot.dir)?, Handed::dir(&snapshot.memory_dir)?);
    let memory_path = memory.file(&snapshot.memory_name);
    let load = Load {
        state: dir.file(vmm.driver.state_file()),
        memory: if snapshot.served { Memory::Served(memory_path) } else { Memory::File(memory_path) },
    };
    vmm.with(|driver, api| driver.load(api, &load))?;

    let section = vmm.section(State::Paused, &Base::Snapshot(snapshot.dir), call.undo)?;
    call.document.set("vm", section);
    Ok(Reply::Document)
}

/// A snapshot to load, found and checked.
struct Snapshot {
    /// Its directory's true path: generations are reached through links that move on.
    dir: PathBuf,
    /// The VMM that it is of.
    choice: Choice,
    /// Whether a page server has the memory; a file has it otherwise.
    served: bool,
    /// Directory and name of the server's socket, or of the memory file.
    memory_dir: PathBuf,
    memory_name: PathBuf,
}

impl Snapshot {
    fn read(document: &Document) -> Result<Self, wire::Error> {
        let given: PathBuf = document.need("snapshot.dir")?;
        let missing = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::File {
                field: "snapshot.dir",
                path,
                what: "cannot be read",
                source: Some(error),
            }
        };
        let dir = given.canonicalize().map_err(missing(&given))?;
        let choice = for_snapshot(document, &dir)?;
        let state = dir.join(choice.driver.state_file());
        fs::File::open(&state).map_err(missing(&state))?;
        let lazy = document.find::<bool>("lazy")?.unwrap_or(true);
        let served = lazy && document.get("uffd").is_some();
        let memory =
            if served { page_server(document)? } else { plain_memory(document, choice.driver, &dir)? };
        let (Some(memory_dir), Some(memory_name)) = (memory.parent(), memory.file_name()) else {
            return Err(wire::Error::field("uffd.socket", "must name a socket in a directory"));
        };
        Ok(Self { dir, choice, served, memory_dir: memory_dir.into(), memory_name: memory_name.into() })
    }
}

/// The socket of the page server, which must be alive: a VMM waits for its pages for ever.
fn page_server(document: &Document) -> Result<PathBuf, wire::Error> {
    let server = document.process("uffd")?;
    let socket = document.need("uffd.socket")?;
    if !server.is_alive() {
        return Err(Error::NoPageServer { pid: server.pid }.into());
    }
    Ok(socket)
}

/// A file that holds all of the memory: an unpacked `snapshot.raw`, or the plain memory file of a snapshot that has
/// no header (with one, it holds only what changed).
fn plain_memory(document: &Document, driver: &dyn Driver, dir: &Path) -> Result<PathBuf, wire::Error> {
    let diff = document.find::<String>("snapshot.kind")?.is_some_and(|kind| kind == "diff");
    if let Some(raw) = document.find::<PathBuf>("snapshot.raw")?.filter(|raw| !diff && raw.is_file()) {
        return Ok(raw);
    }
    let memory = dir.join(driver.memory_file());
    let header = memory.with_extension("header");
    if memory.is_file() && !header.exists() {
        Ok(memory)
    } else {
        Err(Error::NoMemory { path: dir.into() }.into())
    }
}
