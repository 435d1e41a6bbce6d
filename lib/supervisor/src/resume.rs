//! `wrenn resume`: wake a paused sandbox.

use std::path::{Path, PathBuf};

use store::Pauses;
use wire::{Call, Document, Error, Kind, Reply};

use crate::sandbox::{Sandbox, forget_guest, roll_back};
use crate::{failed, recall};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let timeout: Option<u64> = call.document.find("timeout_s")?;
    let id = call.id()?;
    // Before the lock, which its pause holds.
    let recall = recall::ask(call.host, &id);
    let lock = call.host.lock(&format!("{id}.op"), call.options.wait)?;
    let recalled = recall.is_some();
    drop(recall);
    let mut sandbox = Sandbox::at_rest(call.host, id, call.options)?;
    if sandbox.state() == "running"
        && let Some(reason) = failed::reason(&sandbox.document)
    {
        failed::fail(&mut sandbox, &reason)?;
    }
    if recalled && sandbox.state() == "running" {
        // The pause gave it back, or has not even begun: either way it is what was asked for.
        note_use(&mut sandbox, timeout);
        sandbox.save()?;
    } else {
        let last = Pauses::of(sandbox.host, &sandbox.id).last()?;
        match (sandbox.state(), last) {
            ("paused" | "failed" | "stopped", Some(last)) => {
                sandbox.document = paused(&sandbox.document, &last);
                sandbox.document.remove("failure");
            }
            ("paused" | "failed" | "stopped", None) => return Err(no_pause(&sandbox)),
            _ => sandbox.expect(&["paused", "failed"])?,
        }
        resume(&mut sandbox, timeout)?;
    }
    sandbox.answer(call);
    drop(lock);
    Ok(Reply::Document)
}

fn no_pause(sandbox: &Sandbox) -> Error {
    Error::new(
        Kind::Conflict,
        "wrenn.no_pause",
        format!("sandbox {} has no pause to resume from", sandbox.id),
    )
}

/// The document of a pause: memory and the disk of that moment.
pub fn paused(document: &Document, dir: &Path) -> Document {
    let mut document = document.clone();
    forget_life(&mut document);
    if let Some(cow) = document.get("pause.cow").cloned() {
        document.set("cow", cow);
    }
    document.set("snapshot", wire::json!({"dir": dir.to_string_lossy()}));
    document.set("state", "paused");
    document
}

/// Takes out of a document what was only true while the VM ran.
pub fn forget_life(document: &mut Document) {
    for section in ["vm", "net", "uffd", "snapshot"] {
        document.remove(section);
    }
    forget_guest(document);
}

fn note_use(sandbox: &mut Sandbox, timeout_s: Option<u64>) {
    if let Some(seconds) = timeout_s {
        sandbox.document.set("spec.timeout_s", seconds);
    }
    sandbox.touch();
}

/// Wakes a paused sandbox. On a failure it is paused as before.
pub fn resume(sandbox: &mut Sandbox, timeout_s: Option<u64>) -> Result<(), Error> {
    let paused = sandbox.document.clone();
    let woken = (|| {
        sandbox.begin("resume", "resuming")?;
        sandbox.step(&cow::TOOL, "restore")?;
        wake(sandbox)?;
        note_use(sandbox, timeout_s);
        sandbox.settle("running")
    })();
    woken.map_err(|error| {
        let down = sandbox.take_down();
        sandbox.document = paused;
        let saved = sandbox.settle("paused");
        roll_back(roll_back(error, down), saved)
    })
}

/// From the disk to the answering guest, for a resume and for a launch from a template alike.
pub fn wake(sandbox: &mut Sandbox) -> Result<(), Error> {
    sandbox.step(&net::TOOL, "create")?;
    if launch::abilities(&sandbox.document)?.page_server {
        let record = records(sandbox)?;
        sandbox.step_with(&uffd::TOOL, "serve", &[("detach", true.into()), ("record", record.into())])?;
        sandbox.step(&launch::TOOL, "restore")?;
    } else {
        restore_from_file(sandbox)?;
    }
    sandbox.step(&launch::TOOL, "resume")?;
    sandbox.step(&guest::TOOL, "ready")?;
    // A guest that keeps its balloon has less memory and is correct all the same.
    if let Err(error) = sandbox.step_with(&launch::TOOL, "balloon", &[("amount_mib", 0.into())]) {
        log::warn!("{}: the balloon stays as it was: {error}", sandbox.id);
    }
    // A copy runs only when it is known to be itself.
    let copy = sandbox.state() == "creating";
    sandbox.step_with(&guest::TOOL, "init", &[("confirm", copy.into())])
}

/// Whether this is one of the first launches of a template, which show the later ones what to load first. A resume loads
/// what its template's launches showed: its own image is seldom woken again.
fn records(sandbox: &Sandbox) -> Result<bool, Error> {
    let launched = sandbox.state() == "creating";
    Ok(launched && uffd::workingset::is_wanted(&sandbox.document.need::<PathBuf>("snapshot.dir")?))
}

/// For a VMM that reads its memory from one plain file: a template has it, of a pause it is made. The VMM keeps what it
/// has opened.
fn restore_from_file(sandbox: &mut Sandbox) -> Result<(), Error> {
    let dir: PathBuf = sandbox.document.need("snapshot.dir")?;
    if dir.join("memfile.header").is_file() {
        let raw = sandbox.make_memory_path()?;
        sandbox.document.set("snapshot.raw", raw.to_string_lossy().into_owned());
        sandbox.step(&snap::TOOL, "unpack")?;
    }
    sandbox.step(&launch::TOOL, "restore")?;
    sandbox.document.remove("snapshot.raw");
    sandbox.remove_memory()
}
