//! `wrenn-snap delete`: a snapshot's directory goes, if it is one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wire::{Call, Field, Reply, Type, Verb};

use crate::{Error, directory, place};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[Field::may(
        "dir",
        Type::Path,
        "the snapshot's directory; one that is gone is no error, and neither is a sandbox without one",
    )],
    reply: &[Field::need("deleted", Type::Bool, "whether there was anything to delete")],
    example: "wrenn-snap delete dir=/tmp/snapshot",
    ..Verb::new("delete", "remove a snapshot's directory; refuses anything else", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let of_sandbox = call.document.id()?.is_some();
    let dir = match call.fields().find::<PathBuf>("dir")? {
        Some(dir) => dir,
        // A sandbox that never was paused.
        None if of_sandbox => return Ok(done(call, false)),
        None => call.fields().need("dir")?,
    };
    // A sandbox that was made from a template and never paused names the template, which is not its own.
    if of_sandbox && dir.join("meta.json").symlink_metadata().is_ok() {
        log::info!("{} is a template and stays", dir.display());
        return Ok(done(call, false));
    }
    let deleted = delete(&dir)?;
    Ok(done(call, deleted))
}

/// The document's section goes with the snapshot.
fn done(call: &mut Call, deleted: bool) -> Reply {
    if call.document.remove(call.tool.section).is_none() {
        call.document.set("deleted", deleted);
    }
    Reply::Document
}

/// Removes a snapshot's directory, the header first: killed at any point, it leaves nothing that looks complete and can
/// be called again. Returns whether there was anything.
///
/// # Errors
/// `conflict` when it holds anything that is no snapshot's; what the kernel said.
pub fn delete(dir: &Path) -> Result<bool, Error> {
    let refuse = |what: String| Err(Error::NotASnapshot { dir: dir.to_owned(), what });
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => {
            if !metadata.map_err(Error::io("examine", dir))?.is_dir() {
                return refuse("it is not a directory".into());
            }
        }
    }
    let names = directory::names(dir)?;
    for name in &names {
        let path = dir.join(name);
        let metadata = path.symlink_metadata().map_err(Error::io("examine", &path))?;
        if !directory::is_own(name) || !metadata.is_file() {
            return refuse(format!("it holds {name}"));
        }
    }
    let remove = |name: &str| {
        let path = dir.join(name);
        place::gone(fs::remove_file(&path)).map_err(Error::io("remove", path))
    };
    remove(directory::HEADER)?;
    place::sync_dir(dir)?;
    names.iter().try_for_each(|name| remove(name))?;
    place::gone(fs::remove_dir(dir)).map_err(Error::io("remove", dir))?;
    place::sync_dir(dir.parent().unwrap_or(dir))?;
    Ok(true)
}
