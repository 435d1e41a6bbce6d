//! `wrenn-uffd stats`: what a server has done so far, and which ranges the VMM discarded.

use std::path::PathBuf;
use std::time::Duration;

use sys::process::Process;
use wire::{Call, Document, Error, Reply};

use crate::Error as Failure;
use crate::config::Paths;
use crate::control::{self, Request};
use crate::error::NOT_RUNNING;
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
    let answer = control::ask(&paths.control, process.as_ref(), &request(call.document)?, PATIENCE)??;
    if let Some(removed) = answer["removed"].as_str() {
        call.answer("removed", removed);
    }
    call.answer("stats", answer["stats"].clone());
    Ok(Reply::Document)
}

/// Guest memory that a sandbox's page server has yet to fill in, bytes: asked for without changing anything, not waiting
/// more than `limit`. `None` when the document has no server, or it does not tell.
///
/// # Errors
/// `invalid` when the section is none; what asking said.
pub fn missing_bytes(document: &Document, limit: Duration) -> Result<Option<u64>, Error> {
    let Some(control) = document.find::<PathBuf>("uffd.control")? else { return Ok(None) };
    let server = document.process("uffd")?;
    match control::ask(&control, Some(&server), &Request::Look { vm: vm(document) }, limit) {
        Ok(Ok(answer)) => Ok(answer["stats"]["missing_bytes"].as_u64()),
        Ok(Err(error)) if error.code == NOT_RUNNING => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(Failure::NotRunning { .. } | Failure::NoAnswer { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// In a pause, the ranges that its Diff must be told of, and that the dump it is for has been made: the VMM wrote
/// `snapshot.raw`, and nobody has published the generation yet. Otherwise everything, and nothing is to be remembered.
fn request(document: &Document) -> Result<Request, Error> {
    let dir: Option<PathBuf> = document.find("snapshot.dir")?;
    let dumped =
        dir.filter(|dir| document.get("snapshot.raw").is_some() && !dir.join("memfile.header").exists());
    let parent: Option<PathBuf> = document.find("snapshot.parent")?;
    // As the VMM's driver records them, and as the next pause will name this one.
    let resolved = |path: PathBuf| path.canonicalize().unwrap_or(path);
    let since = dumped.as_ref().and(parent).map(resolved);
    Ok(Request::Stats { vm: vm(document), since, dumped: dumped.map(resolved) })
}

/// The document's VM. Only a server of several needs to know.
fn vm(document: &Document) -> Option<Process> {
    document.process("vm").ok()
}

/// Whether this is a sandbox that booted, and so never had a page server: there is nothing to ask, and nothing to stop.
pub(crate) fn has_none(call: &Call) -> bool {
    let document = &call.document;
    document.get("vm").is_some()
        && ["uffd", "control", "socket"].iter().all(|name| document.get(name).is_none())
}
