//! `wrenn-cow remove`: takes the disk down and keeps its file, in the snapshot directory of a pause if there is one.

use std::path::{Path, PathBuf};

use wire::{Call, Reply};

use crate::device;
use crate::disk::{Disk, Kind, forget_device};
use crate::new_file::sync_dir;
use crate::owner::Owner;
use crate::paused::{self, Meta, keep};
use crate::{Error, live};

/// The verb. Every step is tried, whatever became of those before, save that the file of a disk that is still up is left
/// where it is.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = Owner::new(call.host, call.id()?);
    let fields = call.fields();
    let dir = call.document.find::<PathBuf>("snapshot.dir")?;
    let file = fields.find::<PathBuf>("file")?;
    let kind = fields.find("kind")?.unwrap_or(Kind::Snapshot);
    let image = match fields.find("image")? {
        None => call.document.find::<PathBuf>("rootfs")?,
        image => image,
    };
    let origin_bytes = fields.find("origin_bytes")?;

    device::remove(&owner)?;
    let Some(file) = file else {
        // Never made, or taken away already.
        forget_device(call.document);
        return Ok(Reply::Document);
    };
    let image =
        image.ok_or_else(|| wire::Error::field("image", "missing; wants the path of the disk's image"))?;
    let file = match dir {
        None => file,
        Some(dir) => {
            let meta = Meta { base_template: image.clone(), kind, origin_bytes };
            pause(&owner, &file, &dir, &meta)?
        }
    };
    let file_bytes = match std::fs::metadata(&file) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::FileGone { path: file }.into());
        }
        Err(error) => return Err(Error::io("look at", file)(error).into()),
    };
    let origin_bytes = match origin_bytes {
        Some(bytes) => bytes,
        None => crate::image::Image::open(&image)?.bytes,
    };
    Disk { kind, file, image, origin_bytes, file_bytes }.write_down(call.document);
    Ok(Reply::Document)
}

/// Moves the disk's file into the snapshot directory: there before it is not here any more. Done already is success.
fn pause(owner: &Owner, file: &Path, dir: &Path, meta: &Meta) -> Result<PathBuf, Error> {
    let kept = dir.join(paused::FILE);
    // An earlier call got as far as this, and its reply was lost.
    let done = !file.exists() && kept.exists();
    if file == kept || done {
        return Ok(kept);
    }
    let kept = keep(file, dir, meta)?;
    std::fs::remove_file(file).or_else(device::gone_is_fine).map_err(Error::io("remove", file))?;
    if let Some(parent) = file.parent() {
        sync_dir(parent).map_err(Error::io("sync", parent))?;
    }
    live::remove_dir(owner);
    Ok(kept)
}
