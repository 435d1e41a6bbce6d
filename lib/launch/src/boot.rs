//! `wrenn-launch boot`: a fresh VMM in the slot's network namespace, and in it a fresh guest.

use std::path::Path;

use wire::{Call, Reply};

use crate::WORKDIR;
use crate::choose::choose;
use crate::machine::Machine;
use crate::runfiles::Base;
use crate::section::State;
use crate::start::start;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let machine = Machine::read(call.document, &id)?;
    let choice = choose(call.document)?;

    let netns = machine.net.as_ref().map(|net| net.netns.clone());
    let mut vmm = start(call.host, &id, choice, netns, machine.shown(), call.undo)?;
    let machine = machine.seen_in(Path::new(WORKDIR));
    vmm.with(|driver, api| driver.boot(api, &machine))?;
    call.document.set("vm", vmm.section(State::Running, &Base::Boot, call.undo)?);
    Ok(Reply::Document)
}
