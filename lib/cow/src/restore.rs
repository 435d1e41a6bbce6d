//! `wrenn-cow restore`: the live disk of a paused one. The paused file is read and never touched.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use wire::{Call, Host, Reply, Undo};

use crate::device::{self, Attached};
use crate::disk::{Disk, Kind};
use crate::image::Image;
use crate::new_file::copy;
use crate::owner::Owner;
use crate::paused::Meta;
use crate::{Error, exceptions, live};

/// A paused disk that is to live again.
#[derive(Debug)]
pub struct Restore {
    /// Whose it is.
    pub owner: Owner,
    /// The paused file.
    pub file: PathBuf,
    /// The image it was made over.
    pub image: PathBuf,
    /// How it keeps its changes.
    pub kind: Kind,
    /// The image's size in bytes when the disk was made, if it is known.
    pub origin_bytes: Option<u64>,
    /// How long to wait for others who attach an image.
    pub wait: Duration,
}

/// The verb.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = Owner::new(call.host, call.id()?);
    let fields = call.fields();
    let file: PathBuf = fields.need("file")?;
    // Where the document is silent, what was written beside the file speaks.
    let meta = Meta::beside(&file)?;
    let image = match (fields.find("image")?, &meta) {
        (Some(image), _) => image,
        (None, Some(meta)) => meta.base_template.clone(),
        (None, None) => call.document.need("rootfs")?,
    };
    let request = Restore {
        image,
        kind: match fields.find("kind")? {
            Some(kind) => kind,
            None => meta.as_ref().map_or(Kind::Snapshot, |meta| meta.kind),
        },
        origin_bytes: match fields.find("origin_bytes")? {
            None => meta.as_ref().and_then(|meta| meta.origin_bytes),
            bytes => bytes,
        },
        file,
        owner,
        wait: call.options.wait,
    };
    let (disk, attached) = restore(&request, call.host, call.undo)?;
    disk.write(attached.as_ref(), call.document);
    call.document.set("cow.frozen", request.file.to_string_lossy().into_owned());
    Ok(Reply::Document)
}

/// Makes a live disk with the paused one's content, and brings it up. On an error nothing is left behind once `undo`
/// has run.
///
/// # Errors
/// [`Error`]; `timeout` when somebody else holds the lock on the root's images.
pub fn restore(
    request: &Restore,
    host: &Host,
    undo: &mut Undo,
) -> Result<(Disk, Option<Attached>), wire::Error> {
    let image = Image::open_again(&request.image, request.origin_bytes)?;
    let paused = open(&request.file)?;
    let bytes = paused.metadata().map_err(Error::io("look at", &request.file))?.len();
    match request.kind {
        Kind::Snapshot => {
            // All of it: the kernel takes wrong exceptions as they are, and the guest's reads would fail.
            exceptions::read(&paused, image.bytes).map_err(Error::store(&request.file))?;
            device::refuse_existing(&device::mapper()?, &request.owner)?;
        }
        Kind::Clone if bytes != image.bytes => {
            let (path, expected) = (request.file.clone(), image.bytes);
            return Err(Error::ImageChanged { path, found: bytes, expected }.into());
        }
        Kind::Clone => {}
    }

    let dir = request.owner.live_dir();
    let new = live::new_in(&dir, undo)?;
    // A name that is taken is the paused file's own, or a run's that ended badly: neither is overwritten.
    let file = live::free_name(&dir);
    copy(&paused, &new.file).map_err(Error::io("copy the paused disk to", &file))?;
    live::publish(new, &file, undo)?;
    wire::check_interrupt()?;
    let attached = match request.kind {
        Kind::Clone => None,
        Kind::Snapshot => Some(device::attach(&request.owner, &image, &file, host, request.wait, undo)?),
    };
    let disk =
        Disk { kind: request.kind, file, image: image.path, origin_bytes: image.bytes, file_bytes: bytes };
    Ok((disk, attached))
}

/// Opens a disk's file read-only.
pub(crate) fn open(path: &std::path::Path) -> Result<File, Error> {
    File::open(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::FileGone { path: path.to_owned() },
        _ => Error::io("open", path)(source),
    })
}
