//! `wrenn-snap prune`: what nothing refers to goes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Undo, Verb};

use crate::chain::Chain;
use crate::{Error, directory, place, workingset};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[Field::need("dir", Type::Path, "the snapshot's directory")],
    reply: &[
        Field::need("pruned", Type::Strings, "the names of the files that went"),
        Field::need("freed", Type::Integer, "bytes on disk that only they took"),
    ],
    example: "wrenn-snap prune dir=/tmp/snapshot",
    ..Verb::new(
        "prune",
        "remove what the snapshot's header does not refer to, and what a crash has left",
        run,
    )
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let dir: PathBuf = call.fields().need("dir")?;
    let Pruned { names, bytes } = prune(&dir, call.undo)?;
    call.answer("pruned", names);
    call.answer("freed", bytes);
    Ok(Reply::Document)
}

/// What goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Files, sorted.
    pub names: Vec<String>,
    /// Bytes on disk that no other name holds.
    pub bytes: u64,
}

/// Removes from a snapshot's directory, once the work is committed, the diff files and checksums of builds that its header
/// does not refer to, and files that were being written by somebody who is gone.
///
/// # Errors
/// `not_found` when there is no snapshot; `corrupt` when it is damaged, because what is left over may be what it lacks;
/// `conflict` when somebody else changes it; what the kernel said.
pub fn prune(dir: &Path, undo: &mut Undo) -> Result<Pruned, Error> {
    place::lock_dir(dir, undo)?;
    let chain = Chain::open(dir)?;
    let mut pruned = Pruned::default();
    for name in directory::names(dir)? {
        let path = dir.join(&name);
        let metadata = path.symlink_metadata().map_err(Error::io("examine", &path))?;
        if !metadata.is_file() || !is_stray(&chain, &path, &name)? {
            continue;
        }
        if metadata.nlink() == 1 {
            pruned.bytes += metadata.blocks() * 512;
        }
        place::remove_at_commit(&path, undo);
        pruned.names.push(name);
    }
    Ok(pruned)
}

fn is_stray(chain: &Chain, path: &Path, name: &str) -> Result<bool, Error> {
    let used = |path: &Path| chain.diffs().iter().any(|diff| diff.path == path);
    // The header names its own build also where nothing of it is stored.
    let known = |build| build == chain.header.build || chain.diffs().iter().any(|diff| diff.build == build);
    let begun = |name: &str| directory::is_memory(name) || name == workingset::FILE;
    if wire::parse_partial(name).is_some_and(|(name, _)| begun(name)) {
        return place::is_left_over(path);
    }
    if name == directory::PLAIN {
        return Ok(!used(path));
    }
    let Some(rest) = name.strip_prefix("memfile.") else { return Ok(false) };
    let build = rest.strip_suffix(".sum").unwrap_or(rest);
    Ok(Uuid::try_parse(build).is_ok_and(|build| !known(build)))
}
