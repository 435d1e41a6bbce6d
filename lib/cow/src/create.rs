//! `wrenn-cow create`: a private, writable disk over a shared, read-only image.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use wire::{Call, Host, Reply, Undo};

use crate::device::{self, Attached};
use crate::disk::{Disk, Kind};
use crate::exceptions::{CHUNK, file_bytes};
use crate::image::Image;
use crate::new_file::copy;
use crate::owner::Owner;
use crate::{Error, live};

/// What a disk is to be.
#[derive(Debug)]
pub struct Create {
    /// Whose it is.
    pub owner: Owner,
    /// The image.
    pub image: PathBuf,
    /// How it keeps its changes; `None` takes what the host can.
    pub kind: Option<Kind>,
    /// How much may be changed, in bytes, if that is more than the image has.
    pub bytes: u64,
    /// Its file.
    pub file: PathBuf,
    /// How long to wait for others who attach an image.
    pub wait: Duration,
}

/// The verb.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = Owner::new(call.host, call.id()?);
    let fields = call.fields();
    let disk_mib = call.document.find::<u64>("spec.disk_mib")?.unwrap_or(0);
    let request = Create {
        image: call.document.need("rootfs")?,
        kind: wanted_kind(fields.find::<String>("kind")?)?,
        bytes: disk_mib
            .checked_mul(1 << 20)
            .filter(|&bytes| bytes <= MAX_BYTES)
            .ok_or_else(|| wire::Error::field("spec.disk_mib", format!("{disk_mib} is too large")))?,
        file: match fields.find("file")? {
            Some(file) => file,
            None => owner.live_dir().join("rootfs.cow"),
        },
        owner,
        wait: call.options.wait,
    };
    let (disk, attached) = create(&request, call.host, call.undo)?;
    disk.write(attached.as_ref(), call.document);
    Ok(Reply::Document)
}

/// No file system has larger files.
const MAX_BYTES: u64 = 1 << 60;

/// `"auto"`, or nothing, is `None`.
fn wanted_kind(text: Option<String>) -> Result<Option<Kind>, wire::Error> {
    match text.as_deref() {
        None | Some("auto") => Ok(None),
        Some("snapshot") => Ok(Some(Kind::Snapshot)),
        Some("clone") => Ok(Some(Kind::Clone)),
        Some(other) => {
            Err(wire::Error::field("kind", format!("must be auto, snapshot or clone, not {other:?}")))
        }
    }
}

/// Makes the disk. On an error nothing is left behind once `undo` has run.
///
/// # Errors
/// [`Error`]; `timeout` when somebody else holds the lock on the root's images.
pub fn create(
    request: &Create,
    host: &Host,
    undo: &mut Undo,
) -> Result<(Disk, Option<Attached>), wire::Error> {
    // Everything that can be refused is refused here, before the host changes.
    let image = Image::open(&request.image)?;
    let kind = match request.kind {
        Some(kind) => kind,
        None if device::mapper_if_any()?.is_some() => Kind::Snapshot,
        None => Kind::Clone,
    };
    if kind == Kind::Snapshot {
        device::refuse_existing(&device::mapper()?, &request.owner)?;
    }
    if request.file.symlink_metadata().is_ok() {
        return Err(Error::Exists { what: request.file.display().to_string() }.into());
    }

    let dir = request.file.parent().unwrap_or(&request.file);
    let new = live::new_in(dir, undo)?;
    let io = |what| Error::io(what, &request.file);
    let bytes = match kind {
        Kind::Clone => {
            copy(&image.file, &new.file).map_err(io("copy the image to"))?;
            image.bytes
        }
        Kind::Snapshot => {
            let bytes = file_bytes(request.bytes.max(image.bytes));
            new.file.set_len(bytes).map_err(io("make"))?;
            // The header, all zeros for a new store, and the first exceptions have their place on the file system now:
            // without it the first thing the kernel writes would fail.
            new.file.write_all_at(&[0; 2 * CHUNK as usize], 0).map_err(io("make"))?;
            bytes
        }
    };
    live::publish(new, &request.file, undo)?;
    wire::check_interrupt()?;
    let attached = match kind {
        Kind::Clone => None,
        Kind::Snapshot => {
            Some(device::attach(&request.owner, &image, &request.file, host, request.wait, undo)?)
        }
    };
    let disk = Disk {
        kind,
        file: request.file.clone(),
        image: image.path,
        origin_bytes: image.bytes,
        file_bytes: bytes,
    };
    Ok((disk, attached))
}
