//! `wrenn-uffd stats`: what a server has done so far, and which ranges the VMM discarded.

use std::time::Duration;

use wire::{Call, Error, Reply};

use crate::Error as Failure;
use crate::config::Paths;
use crate::control::{Client, Request};
use crate::stop::named;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The verb.
pub fn run(call: &mut Call) -> Result<Reply, Error> {
    if has_none(call) {
        return Ok(Reply::Document);
    }
    let paths = Paths::of(call)?;
    let process = named(call)?;
    let client = Client::connect(&paths.control)?
        .filter(|client| process.as_ref().is_none_or(|process| *process == client.server))
        .ok_or_else(|| Failure::NotRunning { control: paths.control.clone() })?;
    let answer = client.ask(&paths.control, Request::Stats, PATIENCE)??;
    call.answer("removed", answer["removed"].clone());
    call.answer("stats", answer["stats"].clone());
    Ok(Reply::Document)
}

/// Whether this is a sandbox that booted, and so never had a page server: there is nothing to ask, and nothing to stop.
pub(crate) fn has_none(call: &Call) -> bool {
    let document = &call.document;
    document.get("vm").is_some()
        && ["uffd", "control", "socket"].iter().all(|name| document.get(name).is_none())
}
