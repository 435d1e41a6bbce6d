//! `wrenn gc`: `reconcile`, and then the removal of what belongs to no sandbox.

use std::fs;
use std::path::Path;
use std::time::Duration;

use store::{Sandboxes, Templates};
use sys::process::Process;
use wire::{Call, Document, Error, Host, Id, Kind, Options, Reply, Value, json};

use crate::reconcile::{Report, Settled, entry, settle_all};

/// A VMM that has no sandbox gets this long to end on SIGTERM.
const GRACE: Duration = Duration::from_millis(500);

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let report = collect(call.host, call.options)?;
    call.document.set("report", report);
    Ok(Reply::Document)
}

/// Goes through all sandboxes, then through all that the kernel, the run directory and the images hold.
pub fn collect(host: &Host, options: Options) -> Result<Report, Error> {
    let Settled { mut report, mut failed } = settle_all(host, Sandboxes::of(host).ids()?, options);
    for (id, process) in launch::find(host) {
        failed.extend(end_stray(host, &id, &process, &mut report).err());
    }
    for id in run_dirs(host) {
        failed.extend(clear_run_dir(host, &id, options, &mut report).err());
    }
    match Templates::of(host).discard_unfinished() {
        Ok(removed) => report.extend(removed.iter().map(|path| unfinished(path.as_path()))),
        Err(error) => failed.push(error.into()),
    }
    failed.extend(collect_by_tools(host, options, &mut report));
    Error::all(failed)?;
    Ok(report)
}

/// The lock of a sandbox, if nobody is at work on it and its document says that it has nothing on the host. Ids are looked
/// at one by one, at the last moment: others make and wake sandboxes meanwhile.
fn idle(host: &Host, id: &Id) -> Result<Option<sys::lock::Lock>, Error> {
    let lock = match host.lock(&format!("{id}.op"), Duration::ZERO) {
        Err(error) if error.kind == Kind::Timeout => return Ok(None),
        lock => lock?,
    };
    Ok((!has_objects(host, id)).then_some(lock))
}

/// Whether a sandbox may have something on the host. Of one whose document cannot be read nothing is known.
fn has_objects(host: &Host, id: &Id) -> bool {
    match Sandboxes::of(host).load(id) {
        Err(store::Error::NoSandbox { .. }) => false,
        Err(_) => true,
        Ok(document) => {
            let state = document.get("state").and_then(Value::as_str).unwrap_or_default();
            !matches!(state, "paused" | "stopped" | "failed")
        }
    }
}

fn end_stray(host: &Host, id: &Id, process: &Process, report: &mut Report) -> Result<(), Error> {
    let Some(_lock) = idle(host, id)? else { return Ok(()) };
    process.end(GRACE).map_err(|error| {
        let message = format!("cannot stop pid {}", process.pid);
        Error::new(Kind::of_io(&error), "wrenn.gc", message).detail(error)
    })?;
    report.push(entry("stopped", id, "a VMM that belongs to no sandbox"));
    Ok(())
}

fn clear_run_dir(host: &Host, id: &Id, options: Options, report: &mut Report) -> Result<(), Error> {
    let Some(_lock) = idle(host, id)? else { return Ok(()) };
    let mut document = Document::new();
    document.set("id", id.as_str());
    uffd::TOOL.call("stop", &mut document, host, options)?;
    match fs::remove_dir_all(host.run_dir(id)) {
        Ok(()) => report.push(entry("removed", id, "a run directory that belongs to no sandbox")),
        // The page server's own end took it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            report.push(entry("removed", id, "a page server that belongs to no sandbox"));
        }
        Err(error) => {
            let message = format!("cannot remove {}", host.run_dir(id).display());
            return Err(Error::new(Kind::of_io(&error), "wrenn.run_dir", message).detail(error));
        }
    }
    Ok(())
}

/// Slots, devices and files, which the tools know. They look at the locks themselves, and leave what is too young to have
/// been seen here.
fn collect_by_tools(host: &Host, options: Options, report: &mut Report) -> Vec<Error> {
    let mut failed = Vec::new();
    for tool in [&net::TOOL, &cow::TOOL] {
        let keep: Vec<Value> = match Sandboxes::of(host).ids() {
            Ok(ids) => ids.iter().filter(|id| has_objects(host, id)).map(|id| id.as_str().into()).collect(),
            Err(error) => return vec![error.into()],
        };
        let mut document = Document::new();
        document.set("keep", keep);
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

fn unfinished(path: &Path) -> Value {
    json!({"done": "removed", "what": path, "why": "a template whose making or removal was interrupted"})
}

/// Ids that have a directory below `<run>`.
fn run_dirs(host: &Host) -> Vec<Id> {
    let entries = fs::read_dir(host.run()).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Id::new(entry.file_name().to_str()?).ok())
        .filter(|id| id.as_str() != "locks")
        .collect()
}
