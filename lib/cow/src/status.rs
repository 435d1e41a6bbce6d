//! `wrenn-cow status`: how full the disk is, and whether it works.

use std::path::PathBuf;

use wire::{Call, Reply};

use crate::disk::Kind;
use crate::owner::Owner;
use crate::usage::{self, Usage};
use crate::{Error, device};

/// The verb.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = Owner::new(call.host, call.id()?);
    let usage = match call.fields().find("kind")?.unwrap_or(Kind::Snapshot) {
        Kind::Snapshot => {
            let name = owner.name();
            let (mapper, _) = device::find(&owner)?.ok_or(Error::NoDevice { name: name.clone() })?;
            usage::of_device(&mapper, &owner.uuid(), &name)?
        }
        Kind::Clone => {
            let file: PathBuf = call.fields().need("file")?;
            let metadata = crate::restore::open(&file)?.metadata().map_err(Error::io("look at", &file))?;
            Usage::of_file(&metadata)
        }
    };
    call.document.set("cow.usage", usage.to_json());
    Ok(Reply::Document)
}
