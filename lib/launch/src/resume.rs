//! `wrenn-launch resume`: the vCPUs run. Doing it again is success; with `--undo` it gives a VM back whose pause failed.

use wire::{Call, Reply};

use crate::section::{State, Vm};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let vm = Vm::read(call.document)?;
    let mut api = vm.connect(call.host, &id)?;
    let was = vm.driver.state(&mut api)?;
    // Also a VM that says it runs: after a failed pause Firecracker's devices stand still until it is told.
    vm.driver.resume(&mut api)?;
    if was == State::Paused {
        let (host, id) = (call.host.clone(), id.clone());
        let again = Vm::read(call.document)?;
        call.undo.push("resume", move || {
            let mut api = again.connect(&host, &id)?;
            Ok(again.driver.pause(&mut api)?)
        });
    }
    call.document.set("vm.state", State::Running.name());
    Ok(Reply::Document)
}
