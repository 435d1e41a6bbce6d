//! `wrenn-cow delete`: takes the disk down and removes its files.

use std::path::{Path, PathBuf};

use wire::{Call, Reply};

use crate::device;
use crate::disk::{Kind, SECTION};
use crate::owner::Owner;
use crate::{Error, live, paused};

/// The verb. Every step is tried, whatever became of those before.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = Owner::new(call.host, call.id()?);
    let file = call.fields().find::<PathBuf>("file")?;
    let frozen = call.fields().find::<PathBuf>("frozen")?;
    let kind = call.fields().find("kind")?.unwrap_or(Kind::Snapshot);

    let mut errors: Vec<wire::Error> = Vec::new();
    errors.extend(device::remove_if(kind, &owner).err().map(Into::into));
    // The kernel goes on using the file of a device that could not be removed: without its name it would be space that
    // nobody finds.
    if errors.is_empty() {
        let live = live::files(&owner.live_dir());
        let named = [file, frozen].into_iter().flatten().filter(|file| is_own(file, &owner));
        for file in live.into_iter().chain(named) {
            let removed = std::fs::remove_file(&file).or_else(device::gone_is_fine);
            errors.extend(removed.map_err(Error::io("remove", file)).err().map(Into::into));
        }
        live::remove_dir(&owner);
    }
    wire::Error::all(errors)?;
    call.document.remove(SECTION);
    Ok(Reply::Document)
}

/// Whether a file goes with the sandbox's disk. A paused one, with its description beside it, belongs to its snapshot
/// directory: a resume that failed must not take the pause with it.
fn is_own(file: &Path, owner: &Owner) -> bool {
    let in_live_dir = file.parent().is_some_and(|dir| dir == owner.live_dir());
    in_live_dir || !file.with_file_name(paused::META).exists()
}
