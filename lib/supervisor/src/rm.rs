//! `wrenn rm`: everything of a sandbox goes.

use std::fs;

use store::Sandboxes;
use wire::{Call, Document, Error, Kind, Reply};

use crate::recall;
use crate::sandbox::Sandbox;

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let id = call.id()?;
    let document = match Sandboxes::of(call.host).load(&id) {
        // Gone already is success; what a crash left of it goes all the same.
        Err(store::Error::NoSandbox { .. }) => {
            let mut document = Document::new();
            document.set("id", id.as_str());
            document
        }
        document => document?,
    };
    let mut sandbox = Sandbox::new(call.host, id, document, call.options);
    remove(&mut sandbox)?;
    sandbox.document.set("state", "removed");
    sandbox.answer(call);
    Ok(Reply::Document)
}

/// Takes down what runs, then removes the pauses, the document and the run directory. Every step is tried.
pub fn remove(sandbox: &mut Sandbox) -> Result<(), Error> {
    if sandbox.document.get("state").is_some() {
        // On a full disk this is what makes room.
        let begun = sandbox.begin("rm", "destroying");
        begun.unwrap_or_else(|error| log::warn!("{}: {error}", sandbox.id));
    }
    // The document stays while something of the sandbox does: `rm` can be called again.
    sandbox.take_down()?;
    sandbox.note("files");
    recall::forget(sandbox.host, &sandbox.id);
    let run = sandbox.host.run_dir(&sandbox.id);
    let run_gone = match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("cannot remove {}", run.display());
            Err(Error::new(Kind::of_io(&error), "wrenn.run_dir", message).detail(error))
        }
        _ => Ok(()),
    };
    let files_gone = Sandboxes::of(sandbox.host).remove(&sandbox.id).map_err(Error::from);
    for section in ["op", "failure", "snapshot", "pause", "cow", "net", "uffd", "vm", "guest"] {
        sandbox.document.remove(section);
    }
    Error::all([run_gone, files_gone].into_iter().filter_map(Result::err))
}
