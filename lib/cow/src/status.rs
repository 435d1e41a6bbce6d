//! `wrenn-cow status`: how full the disk is, and whether it works.

use std::path::PathBuf;

use wire::{Call, Document, Host, Reply};

use crate::disk::Kind;
use crate::owner::Owner;
use crate::usage::{self, State, Usage};
use crate::{Error, device};

/// The verb.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let usage = match call.fields().find("kind")?.unwrap_or(Kind::Snapshot) {
        Kind::Snapshot => of_snapshot(&Owner::new(call.host, call.id()?))?,
        Kind::Clone => {
            let file: PathBuf = call.fields().need("file")?;
            let metadata = crate::restore::open(&file)?.metadata().map_err(Error::io("look at", &file))?;
            Usage::of_file(&metadata)
        }
    };
    call.document.set("cow.usage", usage.to_json());
    Ok(Reply::Document)
}

/// How full a sandbox's disk is. `None` when it has none, or one that is a file of its own and cannot fill up by itself.
///
/// # Errors
/// `not_found` when the device is not there; what device-mapper said.
pub fn fill(document: &Document, host: &Host) -> Result<Option<Usage>, wire::Error> {
    match (document.id()?, document.find("cow.kind")?) {
        (Some(id), Some(Kind::Snapshot)) => Ok(Some(of_snapshot(&Owner::new(host, id))?)),
        _ => Ok(None),
    }
}

/// Whether a sandbox's disk has taken all that was written to it. After a write that it refused a guest goes on with what it
/// has in its memory, and a pause would keep the one without the other.
///
/// # Errors
/// `exhausted` when it is full; `corrupt` when it works no more; as [`fill`].
pub fn check(document: &Document, host: &Host) -> Result<(), wire::Error> {
    let Some(usage) = fill(document, host)? else { return Ok(()) };
    let name = document.need("cow.name")?;
    match usage.state {
        State::Ok => Ok(()),
        State::Overflow => Err(Error::Full { name }.into()),
        State::Invalid | State::MergeFailed => Err(Error::Broken { name, state: usage.state.name() }.into()),
    }
}

fn of_snapshot(owner: &Owner) -> Result<Usage, Error> {
    let name = owner.name();
    let (mapper, _) = device::find(owner)?.ok_or(Error::NoDevice { name: name.clone() })?;
    usage::of_device(&mapper, &owner.uuid(), &name)
}
