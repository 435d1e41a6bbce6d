//! `wrenn-net create`: a slot for one sandbox, and its network.

use wire::{Call, Map, Reply, Undo, Value};

use crate::{Owner, Slot, build, host, remove, reservation};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    call.document.find::<Map<String, Value>>("net")?;
    let wanted = call.fields().find::<Slot>("slot")?;
    let owner = Owner::new(call.host.tag(), call.id()?);
    let slot = create(&owner, wanted, call.undo)?;
    for (name, value) in slot.section() {
        call.document.set(&format!("net.{name}"), value);
    }
    Ok(Reply::Document)
}

/// Takes the named slot, or the lowest free one, and builds its network.
///
/// # Errors
/// `conflict` when the named slot is taken, `exhausted` when none is free, `unsupported` when this host or this process
/// cannot make one. What had been made for the slot is in `undo`.
pub fn create(owner: &Owner, wanted: Option<Slot>, undo: &mut Undo) -> Result<Slot, wire::Error> {
    host::check()?;
    host::netns_dir()?;
    let slot = reservation::reserve(owner, wanted)?;
    let mine = owner.clone();
    undo.push(format!("slot {slot}"), move || remove::remove(slot, &mine).map(drop));
    // With the slot reserved: no `gc` that looks from here on takes away what it needs.
    host::prepare()?;
    wire::check_interrupt()?;
    build::build(slot, owner)?;
    Ok(slot)
}
