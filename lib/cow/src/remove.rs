//! `wrenn-cow remove`: takes the disk down and keeps its file, in the snapshot directory of a pause if there is one.

use std::path::{Path, PathBuf};

use wire::{Call, Reply};

use crate::device;
use crate::disk::{Disk, Kind, forget_device};
use crate::image::Image;
use crate::new_file::sync_dir;
use crate::owner::Owner;
use crate::paused::{self, Meta, keep};
use crate::restore::open;
use crate::{Error, live};

/// The verb. The file of a disk that cannot be taken down is left where it is.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = Owner::new(call.host, call.id()?);
    let fields = call.fields();
    let dir = call.document.find::<PathBuf>("snapshot.dir")?;
    let kind = fields.find("kind")?.unwrap_or(Kind::Snapshot);
    let origin_bytes = fields.find("origin_bytes")?;
    let Some(file) = fields.find::<PathBuf>("file")? else {
        // Never made, or deleted already.
        device::remove_if(kind, &owner)?;
        forget_device(call.document);
        return Ok(Reply::Document);
    };
    let image = match fields.find("image")? {
        Some(image) => image,
        None => call.document.need::<PathBuf>("rootfs")?,
    };

    device::remove_if(kind, &owner)?;
    let file = match dir {
        None => file,
        Some(dir) => {
            let meta = Meta { base_template: image.clone(), kind, origin_bytes };
            pause(&owner, &file, &dir, &meta)?
        }
    };
    let file_bytes = open(&file)?.metadata().map_err(Error::io("look at", &file))?.len();
    let origin_bytes = match origin_bytes {
        Some(bytes) => bytes,
        None => Image::open(&image)?.bytes,
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
