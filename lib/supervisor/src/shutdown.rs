//! `wrenn shutdown`: pause all that runs and leave a clean host.

use store::Sandboxes;
use wire::{Call, Error, Id, Reply, Value, json};

use crate::sandbox::Sandbox;
use crate::{failed, gc, pause, rm};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let destroy: bool = call.document.find("destroy")?.unwrap_or(false);
    let mut states: Vec<Value> = Vec::new();
    let mut failed = Vec::new();
    for id in Sandboxes::of(call.host).ids()? {
        match one(call, id.clone(), destroy) {
            Ok(state) => states.push(json!({"id": id.as_str(), "state": state})),
            Err(error) => failed.push(error.detail(format!("sandbox {id}"))),
        }
        wire::check_interrupt()?;
    }
    let report = gc::collect(call.host, call.options);
    Error::all(failed)?;
    call.document.set("sandboxes", states);
    call.document.set("report", report?);
    Ok(Reply::Document)
}

fn one(call: &Call, id: Id, destroy: bool) -> Result<String, Error> {
    let _lock = call.host.lock(&format!("{id}.op"), call.options.wait)?;
    let mut sandbox = Sandbox::at_rest(call.host, id, call.options)?;
    // One that has died is for `gc` to settle.
    if sandbox.state() == "running" && (destroy || failed::reason(&sandbox.document).is_none()) {
        if destroy {
            rm::remove(&mut sandbox)?;
            return Ok("removed".to_owned());
        }
        pause::pause(&mut sandbox)?;
    }
    Ok(sandbox.state().to_owned())
}
