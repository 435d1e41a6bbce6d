//! Loop devices of images, shared, and of CoW files, private.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::time::Duration;

use sys::loop_device::{Attach, FileId, LoopDevice, bound};
use wire::Host;

use crate::Error;
use crate::image::Image;
use crate::owner::Owner;

/// The lock under which a root's processes look for an image's loop device and make it if there is none, so that two at
/// once end up with one. No sandbox's lock has a dot in its name.
const LOCK: &str = "cow.loops";

/// The loop device of an image, read-only: one for all disks of the root. Held open by the caller until a mapped device
/// uses it; the kernel detaches it when the last of them is gone.
pub(crate) fn share(
    image: &Image,
    owner: &Owner,
    host: &Host,
    wait: Duration,
) -> Result<LoopDevice, wire::Error> {
    let label = owner.origin_label();
    let _lock = host.lock(LOCK, wait)?;
    if let Some(device) = find(image, &label)? {
        log::debug!("{} already has {}", device.path().display(), image.path.display());
        return Ok(device);
    }
    // Through the page cache: what one sandbox has read, the next one finds there.
    let how = Attach { read_only: true, direct_io: false, label: &label };
    Ok(LoopDevice::attach(&image.file, how).map_err(unavailable)?)
}

/// The loop device that has this image, opened: it cannot go away any more. What it has is asked for after that.
fn find(image: &Image, label: &str) -> Result<Option<LoopDevice>, Error> {
    let failed = |source| Error::Image { path: image.path.clone(), source };
    let path = image.path.canonicalize().map_err(failed)?;
    let file = FileId::of(&image.file).map_err(failed)?;
    // Other people's devices are not even opened: the path must be the same. An image that was replaced has
    // ` (deleted)` behind its path there.
    for bound in
        bound().map_err(Error::io("read", "/sys/block"))?.iter().filter(|bound| bound.backing == path)
    {
        let Ok(device) = LoopDevice::open(bound.number) else { continue };
        if let Ok(Some(status)) = device.status()
            && status.file == file
            && status.read_only
            && status.autoclear
            && status.window == (0, 0)
            && status.label == label
        {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

/// A loop device of its own for a CoW file.
pub(crate) fn attach(path: &Path, owner: &Owner) -> Result<LoopDevice, Error> {
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("open", path))?;
    let label = owner.label();
    // Past the page cache: the guest has one of its own, and so has the mapped device.
    let how = Attach { read_only: false, direct_io: true, label: &label };
    LoopDevice::attach(&file, how).map_err(unavailable)
}

/// The loop devices that have this file, whoever attached it.
pub(crate) fn users(path: &Path) -> Result<Vec<LoopDevice>, Error> {
    let (Ok(path), Ok(file)) = (path.canonicalize(), File::open(path)) else { return Ok(Vec::new()) };
    let file = FileId::of(&file).map_err(Error::io("look at", &path))?;
    let bound = bound().map_err(Error::io("read", "/sys/block"))?;
    let same = |device: &LoopDevice| matches!(device.status(), Ok(Some(status)) if status.file == file);
    let devices = bound.iter().filter(|bound| bound.backing == path);
    Ok(devices.filter_map(|bound| LoopDevice::open(bound.number).ok()).filter(same).collect())
}

fn unavailable(source: std::io::Error) -> Error {
    use nix::errno::Errno as E;
    match source.raw_os_error().map(E::from_raw) {
        Some(E::ENOENT | E::ENXIO | E::ENODEV | E::EACCES | E::EPERM | E::EINVAL | E::ENOTTY) => {
            Error::NoLoop(source)
        }
        _ => Error::Io { what: "attach a file to", path: "/dev/loop-control".into(), source },
    }
}
