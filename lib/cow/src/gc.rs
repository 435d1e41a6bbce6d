//! `wrenn-cow gc`: removes every device, loop device and live file of this root whose sandbox is not to be kept.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use sys::lock::Lock;
use sys::loop_device::LoopDevice;
use wire::{Call, Host, Id, Reply, Value, json};

use crate::device;
use crate::inventory::{Inventory, owner_of};
use crate::{Error, live};

/// How old in seconds a thing must be: a pipe that is making a sandbox holds no lock between its programs.
const MIN_AGE_S: f64 = 60.0;

/// The verb. Goes on past failures and reports them together.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let keep = call.fields().find::<Vec<Id>>("keep")?.unwrap_or_default();
    let min_age = call.fields().find::<f64>("min_age_s")?.unwrap_or(MIN_AGE_S);
    let min_age = Duration::try_from_secs_f64(min_age)
        .map_err(|error| wire::Error::field("min_age_s", format!("{error}, not {min_age}")))?;
    let inventory = Inventory::take(call.host)?;
    let (mut removed, mut left, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for id in inventory.ids() {
        wire::check_interrupt()?;
        let Some(_locks) = locks(call.host, &id)? else {
            left.push(json!({"id": id.as_str(), "why": "in use by an operation"}));
            continue;
        };
        if keep.contains(&id) {
            errors.extend(wake(&inventory, call.host, &id).err().map(wire::Error::from));
        } else if age(&inventory, &id) < min_age {
            left.push(json!({"id": id.as_str(), "why": format!("younger than {} s", min_age.as_secs_f64())}));
        } else {
            collect(&inventory, call.host, &id, &mut removed, &mut errors);
        }
    }
    wire::Error::all(errors)?;
    call.document.set("removed", removed);
    call.document.set("left", left);
    Ok(Reply::Document)
}

/// The locks of the tools and of the supervisor on a sandbox, if both are free.
fn locks(host: &Host, id: &Id) -> Result<Option<[Lock; 2]>, Error> {
    let dir = host.run().join("locks");
    std::fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
    let take = |name: String| {
        let path = dir.join(name);
        sys::lock::try_exclusive(&path).map_err(Error::io("lock", path))
    };
    let Some(operation) = take(format!("{id}.op"))? else { return Ok(None) };
    Ok(take(id.to_string())?.map(|tool| [operation, tool]))
}

/// The age of the youngest thing of a sandbox.
fn age(inventory: &Inventory, id: &Id) -> Duration {
    let made = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.created()).ok();
    let devices = inventory.devices.iter().filter(|mapped| mapped.id == *id).filter_map(|mapped| {
        // The kernel makes this node with the device.
        let node = std::fs::metadata(format!("/dev/dm-{}", mapped.device.number.1)).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(node.ctime().try_into().ok()?))
    });
    let live = inventory.live.iter().filter(|live| live.id == *id);
    let files =
        live.flat_map(|live| std::iter::once(&live.dir).chain(&live.files)).filter_map(|path| made(path));
    let youngest = devices.chain(files).max();
    youngest.map_or(Duration::MAX, |made| made.elapsed().unwrap_or_default())
}

/// Has the disk of a sandbox go on that a killed [`flatten`](crate::flatten) has left standing still. The caller sees to it
/// that none is at work.
///
/// # Errors
/// What device-mapper said.
pub fn wake_one(host: &Host, id: &Id) -> Result<(), Error> {
    match device::find(&owner_of(host, id))? {
        Some((_, device)) => go_on(&device, host, id),
        None => Ok(()),
    }
}

/// The same for all that an inventory has of a sandbox.
fn wake(inventory: &Inventory, host: &Host, id: &Id) -> Result<(), Error> {
    let mut devices = inventory.devices.iter().filter(|mapped| mapped.id == *id);
    devices.try_for_each(|mapped| go_on(&mapped.device, host, id))
}

/// A device that a flatten left suspended when it was killed would keep its guest waiting for ever.
fn go_on(device: &sys::dm::Device, host: &Host, id: &Id) -> Result<(), Error> {
    if !(device.suspended && device.has_table) {
        return Ok(());
    }
    log::warn!("resuming the device {}, which was left suspended", device.name);
    device::mapper()?.resume(&owner_of(host, id).uuid()).map_err(Error::device("resume", &device.name))
}

/// Removes all that a sandbox has: first what uses, then what is used.
fn collect(
    inventory: &Inventory,
    host: &Host,
    id: &Id,
    removed: &mut Vec<Value>,
    errors: &mut Vec<wire::Error>,
) {
    let owner = owner_of(host, id);
    let mut done = |what: &str, which: String, result: Result<(), Error>| match result {
        Ok(()) => removed.push(json!({"id": id.as_str(), what: which})),
        Err(error) => errors.push(error.into()),
    };
    let mut busy = false;
    for mapped in inventory.devices.iter().filter(|mapped| mapped.id == *id) {
        let result = device::remove(&owner);
        busy |= result.is_err();
        done("device", mapped.device.name.clone(), result);
    }
    if busy {
        return;
    }
    for found in inventory.loops.iter().filter(|found| found.id.as_ref() == Some(id)) {
        if let Some(result) = detach(found.bound.number, &found.bound.backing) {
            done("loop", found.bound.path().display().to_string(), result);
        }
    }
    for file in inventory.live.iter().filter(|live| live.id == *id).flat_map(|live| &live.files) {
        let result =
            std::fs::remove_file(file).or_else(device::gone_is_fine).map_err(Error::io("remove", file));
        done("file", file.display().to_string(), result);
    }
    live::remove_dir(&owner);
}

/// Detaches a loop device if it still has that file; `None` when it has not any more.
fn detach(number: u32, backing: &Path) -> Option<Result<(), Error>> {
    let device = LoopDevice::open(number).ok()?;
    let still = sys::loop_device::bound()
        .ok()?
        .iter()
        .any(|bound| bound.number == number && bound.backing == backing);
    still.then(|| device.detach().map_err(Error::io("detach", device.path())))
}
