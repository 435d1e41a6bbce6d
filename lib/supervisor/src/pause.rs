//! `wrenn pause`: freeze a sandbox to disk.
//!
//! It commits in two halves. Until `pack` has published the new generation the VM is only frozen and can be given back;
//! after it, teardown cannot lose anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use store::Pauses;
use wire::{Call, Document, Error, Kind, Reply, Value, json};

use crate::sandbox::{Sandbox, forget_guest, roll_back};

/// Diff generations are chained up to this many; then the chain is merged, offline.
const LONGEST_CHAIN: u64 = 10;

/// For a VMM that is still reading the snapshot that its VM came from: minutes for many gigabytes.
const COMPLETE: Duration = Duration::from_secs(120);

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let mut sandbox = Sandbox::of(call)?;
    sandbox.expect(&["running"])?;
    pause(&mut sandbox)?;
    sandbox.answer(call);
    Ok(Reply::Document)
}

/// Pauses a running sandbox. On a failure before the new generation is published it goes on running.
pub fn pause(sandbox: &mut Sandbox) -> Result<(), Error> {
    let abilities = launch::abilities(&sandbox.document)?;
    if !abilities.page_server {
        // While the guest runs, and with its balloon as it is; a snapshot before would have holes.
        launch::await_memory(&sandbox.document, sandbox.host, COMPLETE)?;
    }
    let dir = Pauses::of(sandbox.host, &sandbox.id).next()?;
    let running = sandbox.document.clone();
    sandbox.document.set("snapshot", section(&sandbox.document, &dir, abilities.diffs));
    freeze(sandbox).map_err(|error| {
        let back = give_back(sandbox, &running, &dir);
        roll_back(error, back)
    })?;
    finish(sandbox, &dir)
}

/// The first half: the VM frozen, its memory and state a published generation.
fn freeze(sandbox: &mut Sandbox) -> Result<(), Error> {
    sandbox.enter("pausing")?;
    sandbox.step(&launch::TOOL, "pause")?;
    sandbox.step(&launch::TOOL, "snapshot")?;
    if sandbox.document.get("uffd").is_some() {
        sandbox.step(&uffd::TOOL, "stats")?;
    }
    sandbox.step(&snap::TOOL, "pack")
}

/// What kind of snapshot comes next: a Diff, if what the VMM's dirty log is relative to is on disk. A VMM without a dirty
/// log dumps all of memory, of which is stored what differs from the snapshot that the VM came from.
fn section(document: &Document, dir: &Path, diffs: bool) -> Value {
    let (dir, kind) = (dir.to_string_lossy(), if diffs { "diff" } else { "full" });
    let base = document.get("vm.base").and_then(Value::as_str);
    let has = |base: &str, name: &str| Path::new(base).join(name).is_file();
    match base.filter(|base| has(base, "memfile.header") || (!diffs && has(base, "memory-ranges"))) {
        Some(base) => json!({"dir": dir, "kind": kind, "parent": base}),
        None => json!({"dir": dir, "kind": "full"}),
    }
}

/// Undoes the first half: the guest runs on as if nothing had been asked.
pub fn give_back(sandbox: &mut Sandbox, running: &Document, dir: &Path) -> Result<(), Error> {
    let resumed = sandbox.step(&launch::TOOL, "resume");
    let mut document = running.clone();
    document.set("state", "running");
    if let Some(state) = sandbox.document.get("vm.state") {
        document.set("vm.state", state.clone());
    }
    // The VMM may have forgotten its dirty pages in a dump that nobody keeps: the next snapshot is a Full one. (One that
    // has no dirty log is compared with what its VM came from as before.)
    if launch::abilities(&document).is_ok_and(|abilities| abilities.diffs) {
        document.remove("vm.base");
    }
    sandbox.document = document;
    // First the files go: a full disk may be why the pause failed, and the document needs room too.
    let discarded = discard(dir);
    Error::all([resumed, discarded, sandbox.save()].into_iter().filter_map(Result::err))
}

/// Removes a generation that was not published, or one that is not wanted any more.
pub fn discard(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|error| {
            let message = format!("cannot remove {}", dir.display());
            Error::new(Kind::of_io(&error), "wrenn.discard", message).detail(error)
        }),
    }
}

/// The second half: the VM goes, its disk joins the generation, the generation becomes the last pause.
pub fn finish(sandbox: &mut Sandbox, dir: &Path) -> Result<(), Error> {
    let version = sandbox.document.get("vm.version").cloned();
    let down = sandbox.every(&[
        (&launch::TOOL, "stop"),
        (&uffd::TOOL, "stop"),
        (&net::TOOL, "remove"),
        (&cow::TOOL, "remove"),
    ]);
    if let Some(generation) = sandbox.document.get("snapshot.generation").and_then(Value::as_u64)
        && generation >= LONGEST_CHAIN
        && let Err(error) = sandbox.step(&snap::TOOL, "merge")
    {
        log::warn!("{}: the chain of {generation} generations stays: {error}", sandbox.id);
    }
    if !dir.join("rootfs.cow").is_file() {
        // The disk is still where it was: `wrenn gc` or another pause can finish.
        return Err(down.err().unwrap_or_else(|| {
            Error::new(Kind::Internal, "wrenn.no_disk", format!("{} has no rootfs.cow", dir.display()))
        }));
    }
    publish(sandbox, dir, version)?;
    down
}

fn publish(sandbox: &mut Sandbox, dir: &Path, version: Option<Value>) -> Result<(), Error> {
    let pauses = Pauses::of(sandbox.host, &sandbox.id);
    // Of the whole document only the disk's section changes again when the sandbox is resumed.
    if let Some(cow) = sandbox.document.get("cow").cloned() {
        sandbox.document.set("pause", json!({"cow": cow, "at": wire::timestamp()}));
    }
    if let Some(version) = version {
        sandbox.document.set("pause.version", version);
    }
    pauses.publish(dir)?;
    forget_guest(&mut sandbox.document);
    sandbox.enter("paused")?;
    for older in pauses.all()?.into_iter().filter(|other| other != dir) {
        if let Err(error) = discard(&older) {
            log::warn!("{}: {error}", sandbox.id);
        }
    }
    Ok(())
}

/// The generation an interrupted pause was writing.
pub fn interrupted(document: &Document) -> Option<PathBuf> {
    document.get("snapshot.dir").and_then(Value::as_str).map(PathBuf::from)
}
