//! `wrenn-launch boot`: a fresh VMM in the slot's network namespace, and in it a fresh guest.

use std::path::Path;

use wire::{Call, Reply};

use crate::machine::Machine;
use crate::runfiles::Base;
use crate::section::State;
use crate::start::start;
use crate::{WORKDIR, driver};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let driver = driver::of_spec(call.document)?;
    let machine = Machine::read(call.document, &id)?;

    let netns = machine.net.as_ref().map(|net| net.netns.clone());
    let mut vmm = start(call.document, call.host, &id, driver, netns, machine.shown(), call.undo)?;
    let machine = machine.seen_in(Path::new(WORKDIR));
    vmm.with(|driver, api| driver.boot(api, &machine))?;
    call.document.set("vm", vmm.section(State::Running, &Base::Boot, call.undo)?);
    Ok(Reply::Document)
}
