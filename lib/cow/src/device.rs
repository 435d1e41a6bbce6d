//! The mapped device of a disk: a dm-snapshot of the image's loop device, with its changes in the CoW file.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use sys::dm::{Device, DeviceMapper, Target};
use sys::loop_device::Bound;
use wire::{Host, Undo};

use crate::disk::Kind;
use crate::exceptions::{CHUNK, SECTOR};
use crate::image::Image;
use crate::owner::{self, Owner};
use crate::{Error, loops, usage};

/// How long a device may stay busy after its last user is said to have gone.
const BUSY: Duration = Duration::from_secs(5);

/// A disk that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Its name: `wrenn-<id>`.
    pub name: String,
    /// Its node: /dev/mapper/<name>.
    pub device: PathBuf,
    /// The loop device of the image.
    pub origin: PathBuf,
    /// The loop device of the CoW file.
    pub cow: PathBuf,
}

/// Device-mapper, or why there is none.
pub(crate) fn mapper() -> Result<DeviceMapper, Error> {
    DeviceMapper::open().map_err(Error::NoDeviceMapper)
}

/// Device-mapper where this host has it: without it there are no devices to find.
pub(crate) fn mapper_if_any() -> Result<Option<DeviceMapper>, Error> {
    match DeviceMapper::open() {
        Ok(mapper) => Ok(Some(mapper)),
        Err(error) if matches!(error.raw_os_error(), Some(errno) if ABSENT.contains(&errno)) => Ok(None),
        Err(error) => Err(Error::NoDeviceMapper(error)),
    }
}

const ABSENT: [i32; 3] =
    [nix::errno::Errno::ENOENT as i32, nix::errno::Errno::ENODEV as i32, nix::errno::Errno::ENXIO as i32];

/// The sandbox's device, if there is one.
pub(crate) fn find(owner: &Owner) -> Result<Option<(DeviceMapper, Device)>, Error> {
    let Some(mapper) = mapper_if_any()? else { return Ok(None) };
    let found = mapper.find(&owner.uuid()).map_err(Error::device("look for", &owner.name()))?;
    Ok(found.map(|device| (mapper, device)))
}

/// Fails if the sandbox's device name is taken, by this root or another.
pub(crate) fn refuse_existing(mapper: &DeviceMapper, owner: &Owner) -> Result<(), Error> {
    let name = owner.name();
    match mapper.find_name(&name).map_err(Error::device("look for", &name))? {
        None => Ok(()),
        Some(device) if device.uuid == owner.uuid() => {
            Err(Error::Exists { what: format!("the device {name}") })
        }
        Some(_) => Err(Error::Exists { what: format!("the device {name} of another root") }),
    }
}

/// Brings the disk up: image and CoW file get loop devices, and a device is mapped over them.
pub(crate) fn attach(
    owner: &Owner,
    image: &Image,
    file: &Path,
    host: &Host,
    wait: Duration,
    undo: &mut Undo,
) -> Result<Attached, wire::Error> {
    let mapper = mapper()?;
    // Both stay open until the mapped device uses them; after that the kernel detaches them with it.
    let origin = loops::share(image, owner, host, wait)?;
    let cow = loops::attach(file, owner)?;
    wire::check_interrupt()?;
    let (name, uuid) = (owner.name(), owner.uuid());
    let device = mapper.create(&name, &uuid).map_err(|source| match source.raw_os_error() {
        Some(errno) if errno == nix::errno::Errno::EBUSY as i32 => {
            Error::Exists { what: format!("the device {name}") }
        }
        _ => Error::device("create", &name)(source),
    })?;
    undo.push(format!("device {name}"), {
        let owner = owner.clone();
        move || Ok(remove(&owner)?)
    });
    let numbers = |device: &sys::loop_device::LoopDevice| {
        device.device_number().map_err(Error::io("look at", device.path()))
    };
    let target = Target {
        sectors: image.bytes / SECTOR,
        kind: "snapshot".into(),
        // Persistent, and a CoW file that is full refuses writes rather than lose the whole disk.
        text: format!("{} {} PO {}", numbers(&origin)?, numbers(&cow)?, CHUNK / SECTOR),
    };
    mapper.load(&uuid, &target).map_err(|source| match mapper.has_target("snapshot") {
        Ok(false) => Error::NoSnapshotTarget(source),
        _ => Error::device("load a table into", &name)(source),
    })?;
    mapper.resume(&uuid).map_err(Error::device("start", &name))?;
    let state = usage::of_device(&mapper, &uuid, &name)?.state;
    if state != usage::State::Ok {
        return Err(Error::Refused { path: file.to_owned(), state: state.name() }.into());
    }
    let node = make_node(&device)?;
    Ok(Attached { name, device: node, origin: origin.path(), cow: cow.path() })
}

/// Makes /dev/mapper/<name> where udev has not: the kernel itself only makes /dev/dm-N.
fn make_node(device: &Device) -> Result<PathBuf, Error> {
    let path = owner::node(&device.name);
    let number = makedev(device.number.0.into(), device.number.1.into());
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_block_device() && metadata.rdev() == number => {
            return Ok(path);
        }
        // One left over from a device that is gone.
        Ok(_) => std::fs::remove_file(&path).map_err(Error::io("remove", &path))?,
        // Not there, or udev's link to a device that is gone.
        Err(_) => drop(std::fs::remove_file(&path)),
    }
    mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number)
        .map_err(|errno| Error::io("make", &path)(errno.into()))?;
    Ok(path)
}

/// As [`remove`], for a disk of this kind: a copy has no device, and needs no privilege to look for one.
pub(crate) fn remove_if(kind: Kind, owner: &Owner) -> Result<(), Error> {
    match kind {
        Kind::Snapshot => remove(owner),
        Kind::Clone => Ok(()),
    }
}

/// Takes the sandbox's device down, with its node and its loop devices. It being gone already is success. Only a device
/// with this owner's uuid is touched.
pub(crate) fn remove(owner: &Owner) -> Result<(), Error> {
    let (name, uuid) = (owner.name(), owner.uuid());
    let Some((mapper, device)) = find(owner)? else { return remove_node(&name, None) };
    let loops = loops_of(&mapper, &uuid);
    let deadline = Instant::now() + BUSY;
    loop {
        match mapper.remove(&uuid) {
            Ok(()) => break,
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENXIO as i32) => break,
            // The VMM is gone and the kernel not yet done with it, or somebody holds it. There is nothing to wait on.
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {
                // A signal does not cut this short: it may be what is being undone for.
                if Instant::now() >= deadline {
                    let why = users(&device);
                    return Err(Error::Busy { what: format!("the device {name}"), why });
                }
            }
            Err(error) => return Err(Error::device("remove", &name)(error)),
        }
    }
    let node = remove_node(&name, Some(device.number));
    if let Some((_, numbers, cow)) = loops {
        // Detached with its last user, unless somebody else looks at it just now (udev does).
        while sys::loop_device::by_device_number(&numbers).as_ref() == Some(&cow) {
            if Instant::now() >= deadline {
                let what = format!("the loop device {}", cow.path().display());
                return Err(Error::Busy { what, why: "another program has it open".into() });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    node
}

/// The loop devices under a device: that of the image, and that of the CoW file with its numbers.
pub(crate) fn loops_of(mapper: &DeviceMapper, uuid: &str) -> Option<(Bound, String, Bound)> {
    let table = mapper.table(uuid).ok()?;
    let mut words = table.first()?.text.split(' ').map(str::to_owned);
    let (origin, cow) = (words.next()?, words.next()?);
    let bound = sys::loop_device::by_device_number;
    Some((bound(&origin)?, cow.clone(), bound(&cow)?))
}

/// Removes the node of a device that is gone, unless it is the node of another one that has the name now.
fn remove_node(name: &str, gone: Option<(u32, u32)>) -> Result<(), Error> {
    let path = owner::node(name);
    // udev's nodes are links, and udev removes them itself.
    let Ok(metadata) = std::fs::symlink_metadata(&path) else { return Ok(()) };
    let number = |(major, minor): (u32, u32)| makedev(major.into(), minor.into());
    let ours = match gone {
        Some(gone) => metadata.file_type().is_block_device() && metadata.rdev() == number(gone),
        None => match mapper_if_any()? {
            Some(mapper) => mapper.find_name(name).map_err(Error::device("look for", name))?.is_none(),
            None => true,
        },
    };
    if ours {
        std::fs::remove_file(&path).or_else(gone_is_fine).map_err(Error::io("remove", path))
    } else {
        Ok(())
    }
}

/// For `or_else`: what is to be removed and is gone already is success.
pub(crate) fn gone_is_fine(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Who has the device open, for a person: processes by name, or the count.
fn users(device: &Device) -> String {
    let number = makedev(device.number.0.into(), device.number.1.into());
    let is_it = |fd: std::fs::DirEntry| {
        std::fs::metadata(fd.path()).is_ok_and(|fd| fd.file_type().is_block_device() && fd.rdev() == number)
    };
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let fds = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if fds.into_iter().any(is_it) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} (pid {pid})", name.trim_end()));
        }
    }
    match found.is_empty() {
        true => format!("it is open {} times, by the kernel or in other namespaces", device.open_count),
        false => format!("{} has it open", found.join(", ")),
    }
}

/// Runs `work` while no I/O reaches the CoW file and all that was written before is in it; the guest waits meanwhile.
pub(crate) fn while_suspended<T>(
    mapper: &DeviceMapper,
    owner: &Owner,
    device: &Device,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let (name, uuid) = (owner.name(), owner.uuid());
    let node = make_node(device)?;
    // A VMM writes through the page cache of the device, which suspending does not write back.
    OpenOptions::new()
        .read(true)
        .open(&node)
        .and_then(|device| device.sync_all())
        .map_err(Error::io("sync", &node))?;
    mapper.suspend(&uuid).map_err(Error::device("suspend", &name))?;
    let done = work();
    let resumed = mapper.resume(&uuid).map_err(Error::device("resume", &name));
    match (done, resumed) {
        (done, Ok(())) => done,
        (Ok(_), Err(error)) => Err(error),
        (Err(error), Err(second)) => {
            log::error!("{second}");
            Err(error)
        }
    }
}
