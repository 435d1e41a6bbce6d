//! `wrenn-cow list`: the disks and loop devices of this root.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wire::{Call, Reply, Value, json};

use crate::disk::Kind;
use crate::exceptions::{CHUNK, StoreError, check_header};
use crate::inventory::{Inventory, Live, Loop, Mapped};
use crate::owner::node;

/// The verb.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let inventory = Inventory::take(call.host)?;
    let mut disks: Vec<Value> = inventory.devices.iter().map(device).collect();
    disks.extend(inventory.live.iter().flat_map(|live| files_without_device(live, &inventory)));
    call.document.set("disks", disks);
    call.document.set("loops", inventory.loops.iter().map(loop_device).collect::<Vec<_>>());
    Ok(Reply::Document)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn device(mapped: &Mapped) -> Value {
    let mut disk = json!({
        "id": mapped.id.as_str(),
        "kind": Kind::Snapshot.name(),
        "name": mapped.device.name,
        "device": text(&node(&mapped.device.name)),
        "open_count": mapped.device.open_count,
        "suspended": mapped.device.suspended,
    });
    if let Some((origin, cow)) = &mapped.loops {
        disk["image"] = text(&origin.backing).into();
        disk["origin"] = text(&origin.path()).into();
        disk["file"] = text(&cow.backing).into();
        disk["loop"] = text(&cow.path()).into();
    }
    disk
}

/// Live files that no device of ours uses: private copies, and CoW files of disks that were removed or never came up.
fn files_without_device<'a>(
    live: &'a Live,
    inventory: &'a Inventory,
) -> impl Iterator<Item = Value> + use<'a> {
    let used = |file: &Path| {
        let file = file.canonicalize();
        let backings = inventory.devices.iter().filter_map(|mapped| mapped.loops.as_ref());
        file.is_ok_and(|file| backings.into_iter().any(|(_, cow)| cow.backing == file))
    };
    live.files.iter().filter(move |file| !used(file)).map(|file| {
        let kind = kind_of(file);
        let mut disk = json!({"id": live.id.as_str(), "kind": kind.name(), "file": text(file)});
        if kind == Kind::Clone {
            disk["device"] = text(file).into();
        }
        disk
    })
}

/// A CoW file begins with its header, or with a whole chunk of zeros when it never came up; an image's first chunk holds
/// something.
fn kind_of(file: &Path) -> Kind {
    let Ok(file) = File::open(file) else { return Kind::Snapshot };
    let mut first = vec![0; CHUNK as usize];
    match check_header(&file) {
        Err(StoreError::Magic(_))
            if file.read_exact_at(&mut first, 0).is_ok_and(|()| first.iter().any(|&byte| byte != 0)) =>
        {
            Kind::Clone
        }
        _ => Kind::Snapshot,
    }
}

fn loop_device(found: &Loop) -> Value {
    let mut entry = json!({"loop": text(&found.bound.path()), "file": text(&found.bound.backing)});
    match &found.id {
        Some(id) => entry["id"] = id.as_str().into(),
        None => entry["shared"] = true.into(),
    }
    entry
}
