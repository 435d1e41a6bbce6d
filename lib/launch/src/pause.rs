//! `wrenn-launch pause`: the vCPUs stand still. Doing it again is success.

use wire::{Call, Reply};

use crate::section::{State, Vm};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let vm = Vm::read(call.document)?;
    let mut api = vm.connect(call.host, &id)?;
    if vm.driver.state(&mut api)? == State::Running {
        // Before the attempt: after a pause that failed half-way Firecracker wants a resume too.
        let (host, id) = (call.host.clone(), id.clone());
        let again = Vm::read(call.document)?;
        call.undo.push("pause", move || {
            let mut api = again.connect(&host, &id)?;
            Ok(again.driver.resume(&mut api)?)
        });
        vm.driver.pause(&mut api)?;
    }
    call.document.set("vm.state", State::Paused.name());
    Ok(Reply::Document)
}
