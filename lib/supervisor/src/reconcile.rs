//! `wrenn reconcile`: sandboxes' documents against what there is. An operation that was killed is finished or undone.
//!
//! It decides by the state and by what is there; the journal's step only tells why.

use std::time::Duration;

use store::{Pauses, Sandboxes};
use wire::{Call, Error, Host, Id, Kind, Options, Reply, Value, json};

use crate::sandbox::Sandbox;
use crate::{failed, pause, rm};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let ids = match call.document.id()? {
        Some(id) if call.host.sandbox_dir(&id).exists() => vec![id],
        Some(id) => return Err(store::Error::NoSandbox { id: id.to_string() }.into()),
        None => Sandboxes::of(call.host).ids()?,
    };
    let Settled { report, failed } = settle_all(call.host, ids, call.options);
    Error::all(failed)?;
    call.document.set("report", report);
    Ok(Reply::Document)
}

/// What was done, to what, and why.
pub type Report = Vec<Value>;

/// One entry of a report.
pub fn entry(done: &str, id: &Id, why: &str) -> Value {
    json!({"done": done, "id": id.as_str(), "why": why})
}

/// What came of going through sandboxes.
#[derive(Default)]
pub struct Settled {
    pub report: Report,
    pub failed: Vec<Error>,
}

/// Settles these sandboxes, each under its lock. One that somebody is at work on is passed over; one that fails does not
/// keep the others from their turn.
pub fn settle_all(host: &Host, ids: Vec<Id>, options: Options) -> Settled {
    let mut settled = Settled::default();
    for id in ids {
        let done = match host.lock(&format!("{id}.op"), Duration::ZERO) {
            Ok(_lock) => settle_one(host, &id, options, &mut settled.report),
            Err(error) if error.kind == Kind::Timeout => {
                settled.report.push(entry("passed over", &id, "an operation is at work on it"));
                Ok(())
            }
            Err(error) => Err(error),
        };
        settled.failed.extend(done.err().map(|error| error.detail(format!("sandbox {id}"))));
    }
    settled
}

fn settle_one(host: &Host, id: &Id, options: Options, report: &mut Report) -> Result<(), Error> {
    match Sandboxes::of(host).load(id) {
        Ok(document) => settle(&mut Sandbox::new(host, id.clone(), document, options), report),
        Err(store::Error::NoSandbox { .. }) => no_document(host, id, report),
        Err(error) => Err(error.into()),
    }
}

/// A creation makes the directory first, a removal takes the document last: what is in between holds nothing.
fn no_document(host: &Host, id: &Id, report: &mut Report) -> Result<(), Error> {
    if !host.sandbox_dir(id).exists() {
        return Ok(());
    }
    if let Some(dir) = Pauses::of(host, id).last()? {
        let message = format!("sandbox {id} has no document, but a pause: {}", dir.display());
        return Err(Error::new(Kind::Corrupt, "wrenn.no_document", message));
    }
    Sandboxes::of(host).remove(id)?;
    report.push(entry("removed", id, "its directory has no document"));
    Ok(())
}

/// Brings a sandbox's document in line with what is there. The caller holds its lock, so nobody is at work on it.
pub fn settle(sandbox: &mut Sandbox, report: &mut Report) -> Result<(), Error> {
    let id = sandbox.id.clone();
    let killed = sandbox.killed_at();
    let why = |what: &str| match &killed {
        Some(killed) => format!("{what} ({killed} was killed)"),
        None => what.to_owned(),
    };
    let dead = failed::reason(&sandbox.document);
    match sandbox.state().to_owned().as_str() {
        "creating" | "destroying" => {
            rm::remove(sandbox)?;
            report.push(entry("removed", &id, &why("its making or its removal was interrupted")));
        }
        "pausing" => settle_pausing(sandbox, dead, &why, report)?,
        "snapshotting" if sandbox.document.get("vm").is_none() => {
            sandbox.settle("paused")?;
            report.push(entry("paused", &id, &why("the making of a template was interrupted")));
        }
        "snapshotting" => match dead {
            None => {
                // Its disk may stand still for a copy.
                cow::wake(sandbox.host, &id)?;
                give_back(sandbox)?;
                report.push(entry("running", &id, &why("the making of a template was interrupted")));
            }
            Some(dead) => settle_dead(sandbox, &why(&dead), report)?,
        },
        "resuming" => settle_dead(sandbox, &why("its resume was interrupted"), report)?,
        "running" => match dead {
            Some(dead) => settle_dead(sandbox, &why(&dead), report)?,
            None => {
                if killed.is_some() {
                    sandbox.settle("running")?;
                }
                discard(sandbox, report)?;
            }
        },
        // These are expected to have nothing on the host.
        state @ ("paused" | "stopped" | "failed") => {
            if killed.is_some() {
                failed::reclaim(sandbox)?;
                sandbox.settle(state)?;
                report.push(entry(state, &id, &why("what it had left is reclaimed")));
            }
            discard(sandbox, report)?;
        }
        other => {
            let message = format!("sandbox {id} is in the state {other:?}, which is none");
            return Err(Error::new(Kind::Corrupt, "wrenn.strange_state", message));
        }
    }
    Ok(())
}

/// Removes generations that nobody wants any more.
fn discard(sandbox: &Sandbox, report: &mut Report) -> Result<(), Error> {
    for dir in failed::discard_unwanted(sandbox)? {
        report.push(entry("discarded", &sandbox.id, &format!("{} is not its last pause", dir.display())));
    }
    Ok(())
}

/// A pause that did not come to its end: finished if its generation is published, given back if the VM still lives.
fn settle_pausing(
    sandbox: &mut Sandbox,
    dead: Option<String>,
    why: &dyn Fn(&str) -> String,
    report: &mut Report,
) -> Result<(), Error> {
    let id = sandbox.id.clone();
    let published = pause::interrupted(&sandbox.document).filter(|dir| dir.join("memfile.header").is_file());
    match (published, dead) {
        (Some(dir), _) => {
            pause::finish(sandbox, &dir)?;
            report.push(entry("paused", &id, &why("its pause was interrupted after it was safe")));
        }
        (None, None) => {
            give_back(sandbox)?;
            report.push(entry("running", &id, &why("its pause was interrupted before it was safe")));
        }
        (None, Some(dead)) => settle_dead(sandbox, &why(&dead), report)?,
    }
    Ok(())
}

/// Gives the guest back whose memory was being dumped. What it had come from is not known any more, nor needed.
fn give_back(sandbox: &mut Sandbox) -> Result<(), Error> {
    let last = Pauses::of(sandbox.host, &sandbox.id).last()?;
    let mut before = sandbox.document.clone();
    before.remove("snapshot");
    match pause::interrupted(&sandbox.document).filter(|dir| Some(dir) != last.as_ref()) {
        Some(dir) => pause::give_back(sandbox, &before, &dir),
        None => Err(Error::new(
            Kind::Corrupt,
            "wrenn.no_generation",
            format!("the document of {} does not say what was being written", sandbox.id),
        )),
    }
}

/// Its VM is gone, or never came to be: it is `paused` as its last pause left it, or `stopped` when it has none.
fn settle_dead(sandbox: &mut Sandbox, why: &str, report: &mut Report) -> Result<(), Error> {
    let state = if failed::reclaim(sandbox)? { "paused" } else { "stopped" };
    sandbox.settle(state)?;
    report.push(entry(state, &sandbox.id, why));
    Ok(())
}
