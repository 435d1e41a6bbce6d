//! `wrenn ls`, `get` and `ping`.

use store::Sandboxes;
use wire::{Call, Error, Reply, Value};

use crate::sandbox::Sandbox;

pub fn ls(call: &mut Call) -> Result<Reply, Error> {
    let sandboxes = Sandboxes::of(call.host);
    let mut all: Vec<Value> = Vec::new();
    for id in sandboxes.ids()? {
        match sandboxes.load(&id) {
            Ok(document) => all.push(document.into_value()),
            // Being made, or gone since the directory was read.
            Err(store::Error::NoSandbox { .. }) => {}
            Err(error) => {
                all.push(wire::json!({"id": id.as_str(), "error": Error::from(error).to_json("wrenn", "ls")}))
            }
        }
    }
    call.document.set("sandboxes", all);
    Ok(Reply::Document)
}

pub fn get(call: &mut Call) -> Result<Reply, Error> {
    Sandbox::of(call)?.answer(call);
    Ok(Reply::Document)
}

pub fn ping(call: &mut Call) -> Result<Reply, Error> {
    let mut sandbox = Sandbox::of(call)?;
    sandbox.expect(&["running"])?;
    sandbox.touch();
    sandbox.save()?;
    sandbox.answer(call);
    Ok(Reply::Document)
}
