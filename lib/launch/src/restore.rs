//! `wrenn-launch restore`: a fresh VMM that loads a snapshot, its memory arriving as it is touched, and stays paused.

use std::path::{Path, PathBuf};

use wire::{Call, Document, Reply};

use crate::Error;
use crate::choose::{Choice, for_snapshot};
use crate::driver::{Driver, Load};
use crate::handed::Handed;
use crate::machine::{Net, disk};
use crate::runfiles::Base;
use crate::section::State;
use crate::start::start;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let net = Net::find(call.document)?;
    let (choice, load) = snapshot(call.document, net.as_ref())?;
    // Everything about the snapshot that can be refused is refused here.
    let disk_path = choice.driver.disk_place(load.dir.path())?;
    choice.driver.examine(&load)?;
    let workdir = disk_path.parent().unwrap_or(&disk_path).to_owned();
    let shown = vec![(disk(call.document)?, disk_path)];

    let mut vmm = start(call.host, &id, choice, net.map(|net| net.netns), shown, call.undo)?;
    let root = vmm.root();
    vmm.with(|driver, api| driver.load(api, &load, &root))?;

    let base = Base::Snapshot(load.dir.path().into());
    let section = vmm.section(State::Paused, &base, &workdir, call.undo)?;
    call.document.set("vm", section);
    Ok(Reply::Document)
}

/// The snapshot that the document names, found, and the VMM that it is of.
fn snapshot(document: &Document, net: Option<&Net>) -> Result<(Choice, Load), wire::Error> {
    let given: PathBuf = document.need("snapshot.dir")?;
    let missing = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::File { field: "snapshot.dir", path, what: "cannot be read", source: Some(error) }
    };
    // Its true path: generations are reached through links that move on.
    let dir = given.canonicalize().map_err(missing(&given))?;
    let choice = for_snapshot(document, &dir)?;
    for name in choice.driver.state_files() {
        let path = dir.join(name);
        std::fs::File::open(&path).map_err(missing(&path))?;
    }
    let lazy = document.find::<bool>("lazy")?.unwrap_or(true);
    let served = lazy && document.get("uffd").is_some();
    if served && !choice.driver.abilities().page_server {
        return Err(Error::NoServer { vmm: choice.name() }.into());
    }
    let memory = if served { page_server(document)? } else { plain_memory(document, choice.driver, &dir)? };
    let (Some(memory_dir), Some(memory_name)) = (memory.parent(), memory.file_name()) else {
        return Err(wire::Error::field("uffd.socket", "must name a socket in a directory"));
    };
    let load = Load {
        dir: Handed::dir(&dir)?,
        memory: (Handed::dir(memory_dir)?, memory_name.into()),
        served,
        lazy,
        tap: net.map(|net| net.tap.clone()),
    };
    Ok((choice, load))
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
    if memory.is_file() && !memory.with_extension("header").exists() {
        Ok(memory)
    } else {
        let page_server = driver.abilities().page_server;
        let way = if page_server { "start wrenn-uffd serve first, or " } else { "" };
        Err(Error::NoMemory { dir: dir.into(), way }.into())
    }
}
