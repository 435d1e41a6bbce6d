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
    let (machine, shown) = machine.shown_in(Path::new(WORKDIR));
    let mut vmm = start(call.host, &id, choice, netns, shown, call.undo)?;
    vmm.with(|driver, api| driver.boot(api, &machine))?;
    // A VMM that finds its kernel again would make a reboot of its guest's reset.
    for path in [Some(&machine.kernel), machine.initrd.as_ref()].into_iter().flatten() {
        vmm.take_away(path)?;
    }
    call.document.set("vm", vmm.section(State::Running, &Base::Boot, Path::new(WORKDIR), call.undo)?);
    Ok(Reply::Document)
}
