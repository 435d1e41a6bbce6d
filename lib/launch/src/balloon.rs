//! `wrenn-launch balloon`: asks the guest to give memory back, or to take it again.

use wire::{Call, Reply};

use crate::runfiles::RunFiles;
use crate::section::Vm;
use crate::{Error, complete};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let mib: u64 = call.document.fields("balloon").need("amount_mib")?;
    if let Some(memory) = call.document.find::<u64>("spec.memory_mib")?.filter(|&memory| mib > memory) {
        return Err(wire::Error::field("amount_mib", format!("is {mib}, and the guest has {memory}")));
    }
    let vm = Vm::read(call.document)?;
    let mut api = vm.connect(call.host, &id)?;
    let (before, _) = vm.driver.balloon(&mut api)?;
    if mib > before && !complete::is_complete(&vm)? {
        // What is given back before it was read would be read all the same.
        return Err(Error::Lazy.into());
    }
    if mib > 0 && vm.driver.abilities().diffs && call.document.get("uffd").is_none() {
        // What the guest gives back reads as zeros and is not logged dirty; without a page server nobody notes it.
        RunFiles::of(call.host, &id).forget_base()?;
        call.document.remove("vm.base");
    }
    vm.driver.set_balloon(&mut api, mib)?;
    let again = Vm::read(call.document)?;
    let host = call.host.clone();
    call.undo
        .push("balloon", move || Ok(again.driver.set_balloon(&mut again.connect(&host, &id)?, before)?));
    Ok(Reply::Document)
}
