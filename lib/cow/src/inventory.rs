//! What a root has on this host, as the kernel and the file system tell: devices, loop devices, live files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sys::dm::{Device, DeviceMapper};
use sys::loop_device::{Bound, LoopDevice, bound};
use wire::{Host, Id};

use crate::owner::{self, Owner};
use crate::{Error, device, live};

/// Everything of one root.
pub(crate) struct Inventory {
    /// Mapped devices.
    pub devices: Vec<Mapped>,
    /// Loop devices.
    pub loops: Vec<Loop>,
    /// Directories of live files.
    pub live: Vec<Live>,
}

/// A sandbox's device.
pub(crate) struct Mapped {
    pub id: Id,
    pub device: Device,
    /// The loop devices of image and CoW file; `None` while it is being made.
    pub loops: Option<(Bound, Bound)>,
}

/// A loop device of the root.
pub(crate) struct Loop {
    pub bound: Bound,
    /// Whose CoW file it has; `None` for an image.
    pub id: Option<Id>,
}

/// A sandbox's directory of live files.
pub(crate) struct Live {
    pub id: Id,
    pub dir: PathBuf,
    pub files: Vec<PathBuf>,
}

impl Inventory {
    /// Takes stock.
    pub fn take(host: &Host) -> Result<Self, Error> {
        Ok(Self { devices: devices(&host.tag())?, loops: loops(host)?, live: live_dirs(host.root())? })
    }

    /// All sandboxes that have something.
    pub fn ids(&self) -> BTreeSet<Id> {
        let devices = self.devices.iter().map(|mapped| &mapped.id);
        let loops = self.loops.iter().filter_map(|found| found.id.as_ref());
        devices.chain(loops).chain(self.live.iter().map(|live| &live.id)).cloned().collect()
    }
}

fn devices(tag: &str) -> Result<Vec<Mapped>, Error> {
    let Some(mapper) = device::mapper_if_any()? else { return Ok(Vec::new()) };
    let prefix = owner::uuid_prefix(tag);
    let mut found = Vec::new();
    for name in mapper.names().map_err(Error::device("list", "all"))? {
        // Removed meanwhile, or not this root's.
        let Some(device) = mapper.find_name(&name).map_err(Error::device("look at", &name))? else {
            continue;
        };
        let Some(Ok(id)) = device.uuid.strip_prefix(&prefix).map(Id::new) else { continue };
        found.push(Mapped { id, loops: loops_under(&mapper, &device), device });
    }
    Ok(found)
}

fn loops_under(mapper: &DeviceMapper, device: &Device) -> Option<(Bound, Bound)> {
    device::loops_of(mapper, &device.uuid).map(|(origin, _, cow)| (origin, cow))
}

/// Ours by their label, or by the file they have.
fn loops(host: &Host) -> Result<Vec<Loop>, Error> {
    let tag = host.tag();
    let (images, prefix) = (owner::origin_label(&tag), owner::uuid_prefix(&tag));
    let sandboxes = sandboxes(host.root());
    let sandboxes = sandboxes.canonicalize().unwrap_or(sandboxes);
    let mut found = Vec::new();
    for bound in bound().map_err(Error::io("read", "/sys/block"))? {
        let Ok(device) = LoopDevice::open(bound.number) else { continue };
        let Ok(Some(status)) = device.status() else { continue };
        let of_path = || {
            let mut below = bound.backing.strip_prefix(&sandboxes).ok()?.iter();
            below.next()?.to_str().filter(|_| below.next().is_some_and(|dir| dir == owner::LIVE))
        };
        match status.label.strip_prefix(&prefix).or_else(of_path).map(Id::new) {
            Some(Ok(id)) => found.push(Loop { bound, id: Some(id) }),
            _ if status.label == images => found.push(Loop { bound, id: None }),
            _ => {}
        }
    }
    Ok(found)
}

fn live_dirs(root: &Path) -> Result<Vec<Live>, Error> {
    let sandboxes = sandboxes(root);
    let entries = match std::fs::read_dir(&sandboxes) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", &sandboxes))?,
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(Ok(id)) = entry.file_name().to_str().map(Id::new) else { continue };
        let dir = owner::live_dir(&entry.path());
        if dir.is_dir() {
            found.push(Live { id, files: live::files(&dir), dir });
        } else if std::fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_none()) {
            // Who was to make the other one in it was killed.
            found.push(Live { id, files: Vec::new(), dir: entry.path() });
        }
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

fn sandboxes(root: &Path) -> PathBuf {
    root.join("sandboxes")
}

/// The owner of what was found.
pub(crate) fn owner_of(host: &Host, id: &Id) -> Owner {
    Owner::new(host, id.clone())
}
