//! `wrenn resume`: wake a paused sandbox.

use std::path::PathBuf;

use store::Pauses;
use wire::{Call, Error, Kind, Reply};

use crate::pause;
use crate::sandbox::{Sandbox, forget_guest, roll_back};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let timeout: Option<u64> = call.document.find("timeout_s")?;
    let mut sandbox = Sandbox::of(call)?;
    if sandbox.state() == "running" && !sandbox.vm_is_alive() {
        fall_back(&mut sandbox)?;
    }
    if sandbox.state() == "stopped" {
        return Err(no_pause(&sandbox));
    }
    sandbox.expect(&["paused"])?;
    sandbox.document = paused(&sandbox)?;
    resume(&mut sandbox, timeout)?;
    sandbox.answer(call);
    Ok(Reply::Document)
}

/// After the death of its VM: takes down what is left of that life. The sandbox is `paused` as its last pause left it, or
/// `stopped` when it has none.
pub fn fall_back(sandbox: &mut Sandbox) -> Result<(), Error> {
    sandbox.take_down()?;
    let pauses = Pauses::of(sandbox.host, &sandbox.id);
    let last = pauses.last()?;
    for other in pauses.all()?.into_iter().filter(|dir| Some(dir) != last.as_ref()) {
        pause::discard(&other)?;
    }
    match last {
        Some(_) => sandbox.document = paused(sandbox)?,
        None => sandbox.document.set("state", "stopped"),
    }
    sandbox.save()
}

fn no_pause(sandbox: &Sandbox) -> Error {
    Error::new(
        Kind::Conflict,
        "wrenn.no_pause",
        format!("sandbox {} has no pause to resume from", sandbox.id),
    )
}

/// The document of the sandbox's last pause: memory and the disk of that moment.
fn paused(sandbox: &Sandbox) -> Result<wire::Document, Error> {
    let dir = Pauses::of(sandbox.host, &sandbox.id).last()?.ok_or_else(|| no_pause(sandbox))?;
    let mut document = sandbox.document.clone();
    for section in ["vm", "net", "uffd"] {
        document.remove(section);
    }
    forget_guest(&mut document);
    let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
    let saved = document.get("pause").and_then(|pause| pause.get("cow")).cloned();
    if let Some(cow) = saved {
        document.set("cow", cow);
    }
    document.set("snapshot", wire::json!({"dir": text(dir)}));
    document.set("state", "paused");
    Ok(document)
}

/// Wakes a paused sandbox. On a failure it is paused as before.
pub fn resume(sandbox: &mut Sandbox, timeout_s: Option<u64>) -> Result<(), Error> {
    let paused = sandbox.document.clone();
    let woken = (|| {
        sandbox.enter("resuming")?;
        sandbox.step(&cow::TOOL, "restore")?;
        wake(sandbox)?;
        if let Some(seconds) = timeout_s {
            sandbox.document.set("spec.timeout_s", seconds);
        }
        sandbox.touch();
        sandbox.enter("running")
    })();
    woken.map_err(|error| {
        let down = sandbox.take_down();
        sandbox.document = paused;
        let saved = sandbox.save();
        roll_back(roll_back(error, down), saved)
    })
}

/// From the disk to the answering guest, for a resume and for a launch from a template alike.
pub fn wake(sandbox: &mut Sandbox) -> Result<(), Error> {
    sandbox.step(&net::TOOL, "create")?;
    if launch::abilities(&sandbox.document)?.page_server {
        sandbox.step_with(&uffd::TOOL, "serve", &[("detach", true.into())])?;
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
