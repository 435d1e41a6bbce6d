//! `wrenn ls`, `get` and `ping`.

use store::Sandboxes;
use wire::{Call, Document, Error, Reply, Value};

use crate::sandbox::Sandbox;

pub fn ls(call: &mut Call) -> Result<Reply, Error> {
    let wanted = Wanted::of(call)?;
    let sandboxes = Sandboxes::of(call.host);
    let mut all: Vec<Value> = Vec::new();
    for id in sandboxes.ids()? {
        match sandboxes.load(&id) {
            Ok(document) if wanted.has(&document) => all.push(document.into_value()),
            // Being made, or gone since the directory was read.
            Ok(_) | Err(store::Error::NoSandbox { .. }) => {}
            Err(error) => {
                all.push(wire::json!({"id": id.as_str(), "error": Error::from(error).to_json("wrenn", "ls")}))
            }
        }
    }
    call.document.set("sandboxes", all);
    Ok(Reply::Document)
}

/// Every state that a sandbox can be in.
pub const STATES: &[&str] = &[
    "creating",
    "running",
    "pausing",
    "paused",
    "resuming",
    "snapshotting",
    "destroying",
    "failed",
    "stopped",
];

/// Which sandboxes are asked for: those of which all of this is true. (One that cannot be read is always shown.)
struct Wanted {
    state: Option<String>,
    template: Option<String>,
    metadata: Vec<(String, String)>,
}

impl Wanted {
    fn of(call: &Call) -> Result<Self, Error> {
        let request = &call.document;
        let state: Option<String> = request.find("state")?;
        if let Some(state) = state.as_deref().filter(|state| !STATES.contains(state)) {
            return Err(Error::field("state", format!("{state:?} is none of {}", STATES.join(", "))));
        }
        Ok(Self {
            state,
            template: request.find("template")?,
            metadata: request.find("metadata")?.unwrap_or_default(),
        })
    }

    fn has(&self, document: &Document) -> bool {
        let is = |path: &str, wanted: &str| document.get(path).is_some_and(|value| value == wanted);
        let metadata = document.get("metadata");
        self.state.as_deref().is_none_or(|state| is("state", state))
            && self.template.as_deref().is_none_or(|template| is("spec.template", template))
            && self.metadata.iter().all(|(name, wanted)| {
                metadata.and_then(|all| all.get(name)).is_some_and(|value| value == wanted.as_str())
            })
    }
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
