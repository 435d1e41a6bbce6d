//! `wrenn gc`: finish or undo what a crash left, and remove what belongs to no sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use store::Sandboxes;
use wire::{Call, Document, Error, Host, Id, Options, Reply, Value, json};

use crate::sandbox::Sandbox;
use crate::{pause, resume, rm};

/// A VMM that has no sandbox gets this long to end on SIGTERM.
const GRACE: Duration = Duration::from_millis(500);

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let report = collect(call.host, call.options)?;
    call.document.set("report", report);
    Ok(Reply::Document)
}

/// What was done, to what, and why.
type Report = Vec<Value>;

/// Goes through all sandboxes, then through all that the kernel and the run directory hold.
pub fn collect(host: &Host, options: Options) -> Result<Report, Error> {
    let mut report = Report::new();
    let mut failed = Vec::new();
    // Ids whose objects stay. Their locks are held until the end, unless they run or somebody else is at work on them.
    let mut keep = Vec::new();
    let mut held = BTreeMap::new();
    for id in Sandboxes::of(host).ids()? {
        let Ok(lock) = host.lock(&format!("{id}.op"), Duration::ZERO) else {
            keep.push(id);
            continue;
        };
        match settle(host, &id, options, &mut report) {
            Ok(true) => keep.push(id),
            Ok(false) => drop(held.insert(id, lock)),
            Err(error) => {
                failed.push(error.detail(format!("sandbox {id}")));
                keep.push(id);
            }
        }
    }
    failed.extend(orphans(host, options, &keep, &mut report));
    Error::all(failed)?;
    Ok(report)
}

/// Brings one sandbox's document in line with what is there. Gives whether it keeps objects on the host.
fn settle(host: &Host, id: &Id, options: Options, report: &mut Report) -> Result<bool, Error> {
    let mut sandbox = match Sandboxes::of(host).load(id) {
        Ok(document) => Sandbox::new(host, id.clone(), document, options),
        Err(store::Error::NoSandbox { .. }) => {
            Sandboxes::of(host).remove(id)?;
            report.push(entry("removed", id, "its directory has no document"));
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    let alive = sandbox.vm_is_alive();
    match (sandbox.state().to_owned().as_str(), alive) {
        ("running", true) => Ok(true),
        ("pausing", alive) => settle_pausing(&mut sandbox, alive, report),
        ("creating" | "destroying", _) => {
            rm::remove(&mut sandbox)?;
            report.push(entry("removed", id, "its making or its removal was interrupted"));
            Ok(false)
        }
        (state @ ("running" | "resuming"), _) => {
            let why = if state == "running" { "its VM is gone" } else { "its resume was interrupted" };
            settle_dead(&mut sandbox, why, report)?;
            Ok(false)
        }
        // Paused and stopped sandboxes are expected to have nothing on the host.
        _ => Ok(false),
    }
}

/// A pause that did not come to its end: finished if its generation is published, given back if the VM still lives.
fn settle_pausing(sandbox: &mut Sandbox, alive: bool, report: &mut Report) -> Result<bool, Error> {
    let id = sandbox.id.clone();
    let dir = pause::interrupted(&sandbox.document);
    if let Some(dir) = &dir
        && dir.join("memfile.header").is_file()
    {
        pause::finish(sandbox, dir)?;
        report.push(entry("paused", &id, "its pause was interrupted after it was safe"));
        return Ok(false);
    }
    if alive && let Some(dir) = &dir {
        let before = sandbox.document.clone();
        pause::give_back(sandbox, &before, dir)?;
        report.push(entry("running", &id, "its pause was interrupted before it was safe"));
        return Ok(true);
    }
    settle_dead(sandbox, "its VM died while it was paused", report)?;
    Ok(false)
}

fn settle_dead(sandbox: &mut Sandbox, why: &str, report: &mut Report) -> Result<(), Error> {
    resume::fall_back(sandbox)?;
    report.push(entry(sandbox.state(), &sandbox.id, why));
    Ok(())
}

/// Removes what carries this root's mark and belongs to none of `keep`. Gives what failed.
fn orphans(host: &Host, options: Options, keep: &[Id], report: &mut Report) -> Vec<Error> {
    let mut failed = Vec::new();
    let kept = |id: &Id| keep.contains(id);
    for (id, process) in launch::find(host).into_iter().filter(|(id, _)| !kept(id)) {
        match process.end(GRACE) {
            Ok(()) => report.push(entry("stopped", &id, "a VMM that belongs to no sandbox")),
            Err(error) => {
                let message = format!("cannot stop pid {}", process.pid);
                failed.push(Error::new(wire::Kind::of_io(&error), "wrenn.gc", message).detail(error));
            }
        }
    }
    for id in run_dirs(host).into_iter().filter(|id| !kept(id)) {
        let mut document = Document::new();
        document.set("id", id.as_str());
        if let Err(error) = uffd::TOOL.call("stop", &mut document, host, options) {
            failed.push(error);
            continue;
        }
        if fs::remove_dir_all(host.run_dir(&id)).is_ok() {
            report.push(entry("removed", &id, "a run directory that belongs to no sandbox"));
        }
    }
    let ids: Vec<Value> = keep.iter().map(|id| id.as_str().into()).collect();
    for tool in [&net::TOOL, &cow::TOOL] {
        let mut document = Document::new();
        document.set("keep", ids.clone());
        match tool.call("gc", &mut document, host, options) {
            Ok(()) => {
                for removed in document.get("removed").and_then(Value::as_array).into_iter().flatten() {
                    report.push(json!({"done": "removed", "what": removed, "by": tool.name}));
                }
            }
            Err(error) => failed.push(error),
        }
    }
    failed
}

/// Ids that have a directory below `<run>`.
fn run_dirs(host: &Host) -> Vec<Id> {
    let entries = fs::read_dir(host.run()).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Id::new(entry.file_name().to_str()?).ok())
        .filter(|id| id.as_str() != "locks")
        .collect()
}

fn entry(done: &str, id: &Id, why: &str) -> Value {
    json!({"done": done, "id": id.as_str(), "why": why})
}
