//! `failed`: a sandbox whose VM or page server died. What it had on the host is reclaimed, its last pause is kept.

use std::path::PathBuf;
use std::time::Duration;

use store::Pauses;
use wire::{Document, Error, Kind, Value, json};

use crate::sandbox::Sandbox;
use crate::{pause, resume};

/// How long a page server whose guardian is gone may take to say that it serves.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why a sandbox that should be running cannot be: what of it has died.
pub fn reason(document: &Document) -> Option<String> {
    let named = |section: &str| {
        let process = document.process(section).ok();
        process.map(|process| format!(" (pid {})", process.pid)).unwrap_or_default()
    };
    if !document.process("vm").is_ok_and(|vmm| vmm.is_alive()) {
        return Some(format!("its VMM{} is gone", named("vm")));
    }
    document.get("uffd.pid")?;
    let served = uffd::serving(document, PATIENCE).is_ok_and(|serving| serving.is_some());
    (!served).then(|| format!("its page server{} is gone", named("uffd")))
}

/// Records that a running sandbox has failed, and takes down what is left of it. The caller holds its lock.
pub fn fail(sandbox: &mut Sandbox, reason: &str) -> Result<(), Error> {
    let log: Option<PathBuf> = sandbox.document.find("vm.log").unwrap_or_default();
    let lines = log.map(|log| wire::last_lines(&log, 0)).unwrap_or_default();
    sandbox.document.set("failure", json!({"reason": reason, "at": wire::timestamp(), "log": lines}));
    sandbox.begin("fail", "failed")?;
    reclaim(sandbox)?;
    sandbox.settle("failed")
}

/// After the death of a VM: takes down what is left of that life. The document is that of the last pause, if there is one;
/// its state is the caller's to say. Gives whether there is one.
pub fn reclaim(sandbox: &mut Sandbox) -> Result<bool, Error> {
    sandbox.take_down()?;
    sandbox.note("files");
    discard_unwanted(sandbox)?;
    let last = Pauses::of(sandbox.host, &sandbox.id).last()?;
    match &last {
        Some(dir) => sandbox.document = resume::paused(&sandbox.document, dir),
        None => resume::forget_life(&mut sandbox.document),
    }
    Ok(last.is_some())
}

/// Removes the generations that are neither the last pause nor what a running VM's dirty log is relative to. Gives those
/// that went.
pub fn discard_unwanted(sandbox: &Sandbox) -> Result<Vec<PathBuf>, Error> {
    let pauses = Pauses::of(sandbox.host, &sandbox.id);
    let wanted = [pauses.last()?, sandbox.document.find("vm.base")?];
    let unwanted: Vec<_> =
        pauses.all()?.into_iter().filter(|dir| !wanted.iter().flatten().any(|other| other == dir)).collect();
    Error::all(unwanted.iter().filter_map(|dir| pause::discard(dir).err()))?;
    Ok(unwanted)
}

/// What a verb says that needs a running sandbox and finds that it has failed.
pub fn error(sandbox: &Sandbox) -> Error {
    let text = |name: &str| sandbox.document.get(name).and_then(Value::as_str).unwrap_or("it failed");
    let message = format!("sandbox {} failed: {}", sandbox.id, text("failure.reason"));
    let log = sandbox.document.get("failure.log").and_then(Value::as_array).cloned().unwrap_or_default();
    let lines = log.iter().filter_map(Value::as_str);
    lines.fold(Error::new(Kind::Conflict, "wrenn.failed", message), Error::detail)
}
