//! `wrenn pause`: freeze a sandbox to disk.
//!
//! It commits in two halves. Until `pack` has published the new generation the VM is only frozen and can be given back: when
//! a step fails, at a signal, or because `resume` asks for it. After it, teardown cannot lose anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use store::Pauses;
use wire::{Call, Document, Error, Kind, Reply, Tool, Value, json};

use crate::sandbox::{Sandbox, forget_guest, roll_back};
use crate::{failed, recall};

/// Diff generations are chained up to this many; then the chain is merged, offline.
const LONGEST_CHAIN: u64 = 10;

/// For a VMM that is still reading the snapshot that its VM came from: minutes for many gigabytes.
const COMPLETE: Duration = Duration::from_secs(120);

/// Meanwhile it is looked so often whether the pause is still wanted.
const LOOK: Duration = Duration::from_millis(200);

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let mut sandbox = Sandbox::at_rest(call.host, call.id()?, call.options)?;
    sandbox.expect(&["running"])?;
    pause(&mut sandbox)?;
    sandbox.answer(call);
    Ok(Reply::Document)
}

/// Pauses a running sandbox. On a failure before the new generation is published it goes on running.
pub fn pause(sandbox: &mut Sandbox) -> Result<(), Error> {
    let running = sandbox.document.clone();
    let dir = Pauses::of(sandbox.host, &sandbox.id).next()?;
    // One of somebody who has given up.
    recall::forget(sandbox.host, &sandbox.id);
    sandbox.document.set("snapshot", section(&running, &dir)?);
    let (host, id) = (sandbox.host, sandbox.id.clone());
    let frozen = recall::unless_recalled(host, &id, || {
        sandbox.begin("pause", "pausing")?;
        freeze(sandbox)?;
        checked(sandbox, &snap::TOOL, "pack")
    });
    if let Err(error) = frozen {
        let back = give_back(sandbox, &running, &dir);
        return Err(roll_back(error, back));
    }
    finish(sandbox, &dir)
}

/// The VM frozen, its memory and state written into the directory of `snapshot`.
pub fn freeze(sandbox: &mut Sandbox) -> Result<(), Error> {
    if !launch::abilities(&sandbox.document)?.page_server {
        await_memory(sandbox)?;
    }
    checked(sandbox, &launch::TOOL, "pause")?;
    let dumped = checked(sandbox, &launch::TOOL, "snapshot");
    // Synced by that: a write that the disk has refused is known by now, and may be why it failed.
    cow::check(&sandbox.document, sandbox.host)?;
    dumped?;
    if sandbox.document.get("uffd").is_some() {
        checked(sandbox, &uffd::TOOL, "stats")?;
    }
    Ok(())
}

/// A step, if the work is still wanted.
pub fn checked(sandbox: &mut Sandbox, tool: &'static Tool, verb: &str) -> Result<(), Error> {
    wire::check_interrupt()?;
    sandbox.step(tool, verb)
}

/// While the guest runs, and with its balloon as it is; a snapshot before would have holes.
fn await_memory(sandbox: &mut Sandbox) -> Result<(), Error> {
    sandbox.note("memory");
    let deadline = Instant::now() + COMPLETE;
    loop {
        wire::check_interrupt()?;
        let left = deadline.saturating_duration_since(Instant::now());
        match launch::await_memory(&sandbox.document, sandbox.host, left.min(LOOK)) {
            Err(error) if error.code == "launch.lazy" && !left.is_zero() => {}
            done => return done,
        }
    }
}

/// What kind of snapshot comes next: a Diff, if what the VMM's dirty log is relative to is on disk. A VMM without a dirty
/// log dumps all of memory, of which is stored what differs from the snapshot that the VM came from.
pub fn section(document: &Document, dir: &Path) -> Result<Value, Error> {
    let diffs = launch::abilities(document)?.diffs;
    let (dir, kind) = (dir.to_string_lossy(), if diffs { "diff" } else { "full" });
    let base = document.get("vm.base").and_then(Value::as_str);
    let has = |base: &str, name: &str| Path::new(base).join(name).is_file();
    let mut section =
        match base.filter(|base| has(base, "memfile.header") || (!diffs && has(base, "memory-ranges"))) {
            Some(base) => json!({"dir": dir, "kind": kind, "parent": base}),
            None => json!({"dir": dir, "kind": "full"}),
        };
    // The VMM that wrote it is asked for when it has gone.
    if let Some(version) = document.get("vm.version") {
        section["version"] = version.clone();
    }
    Ok(section)
}

/// Undoes the first half: the guest runs on as if nothing had been asked.
pub fn give_back(sandbox: &mut Sandbox, running: &Document, dir: &Path) -> Result<(), Error> {
    // Before the dump the VMM's dirty log is untouched.
    let dumped = sandbox
        .document
        .get("op.step")
        .is_some_and(|step| !["begin", "memory", "launch.pause"].iter().any(|before| step == before));
    let resumed = sandbox.step(&launch::TOOL, "resume");
    let mut document = running.clone();
    for name in ["vm.state", "op"] {
        if let Some(value) = sandbox.document.get(name) {
            document.set(name, value.clone());
        }
    }
    // The VMM may have forgotten its dirty pages in a dump that nobody keeps: the next snapshot is a Full one. (One that
    // has no dirty log is compared with what its VM came from as before.)
    if dumped && launch::abilities(&document).is_ok_and(|abilities| abilities.diffs) {
        document.remove("vm.base");
    }
    sandbox.document = document;
    // First the files go: a full disk may be why the pause failed, and the document needs room too.
    let discarded = discard(dir).and_then(|()| failed::discard_unwanted(sandbox).map(drop));
    recall::forget(sandbox.host, &sandbox.id);
    Error::all([resumed, discarded, sandbox.settle("running")].into_iter().filter_map(Result::err))
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
    recall::forget(sandbox.host, &sandbox.id);
    let down = sandbox.every(&[
        (&launch::TOOL, "stop"),
        (&uffd::TOOL, "stop"),
        (&net::TOOL, "remove"),
        (&cow::TOOL, "remove"),
    ]);
    shorten(sandbox);
    if !dir.join("rootfs.cow").is_file() {
        // The disk is still where it was: `wrenn gc` or another pause can finish.
        return Err(down.err().unwrap_or_else(|| {
            Error::new(Kind::Internal, "wrenn.no_disk", format!("{} has no rootfs.cow", dir.display()))
        }));
    }
    publish(sandbox, dir)?;
    down
}

/// Merges a chain of generations that has grown long. Without it a resume is correct all the same.
pub fn shorten(sandbox: &mut Sandbox) {
    if let Some(generation) = sandbox.document.get("snapshot.generation").and_then(Value::as_u64)
        && generation >= LONGEST_CHAIN
        && let Err(error) = sandbox.step(&snap::TOOL, "merge")
    {
        log::warn!("{}: the chain of {generation} generations stays: {error}", sandbox.id);
    }
}

fn publish(sandbox: &mut Sandbox, dir: &Path) -> Result<(), Error> {
    sandbox.note("publish");
    // Of the whole document only the disk's section changes again when the sandbox is resumed.
    if let Some(cow) = sandbox.document.get("cow").cloned() {
        sandbox.document.set("pause", json!({"cow": cow, "at": wire::timestamp()}));
    }
    if let Some(version) = sandbox.document.get("snapshot.version").cloned() {
        sandbox.document.set("pause.version", version);
    }
    Pauses::of(sandbox.host, &sandbox.id).publish(dir)?;
    sandbox.note("files");
    if let Err(error) = failed::discard_unwanted(sandbox) {
        log::warn!("{}: {error}", sandbox.id);
    }
    forget_guest(&mut sandbox.document);
    sandbox.settle("paused")
}

/// The generation an interrupted pause was writing.
pub fn interrupted(document: &Document) -> Option<PathBuf> {
    document.get("snapshot.dir").and_then(Value::as_str).map(PathBuf::from)
}
