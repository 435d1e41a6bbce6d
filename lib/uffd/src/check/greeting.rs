//! Handshakes that are none. Those that come in an unusual form are in `layout`.

use std::net::Shutdown;

use super::scenario::{Ending, Scenario, Unmet};
use super::stage::{Stage, send};
use super::vm::Vm;

/// What must hold of the server afterwards is the same for all.
const fn refused(name: &'static str, must: &'static str, play: fn(&Stage) -> Result<(), Unmet>) -> Scenario {
    Scenario { ending: Ending::Refused, ..Scenario::new(name, must, play) }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    refused(
        "handshake-none",
        "after a VMM that connects and leaves without a word the server ends, or takes another VMM",
        none,
    ),
    refused(
        "handshake-cut",
        "after a handshake that is cut short the server ends, or takes another VMM",
        cut,
    ),
    refused(
        "handshake-not-json",
        "after a handshake that is not JSON the server ends, or takes another VMM",
        not_json,
    ),
    refused(
        "handshake-no-fd",
        "of a handshake whose descriptor never comes the server lets go in time",
        no_descriptor,
    ),
    refused(
        "handshake-never",
        "of a VMM that connects and never says anything the server lets go in time",
        never,
    ),
];

fn none(stage: &Stage) -> Result<(), Unmet> {
    drop(stage.connect()?);
    stage.ready()
}

fn cut(stage: &Stage) -> Result<(), Unmet> {
    let vm = Vm::new(stage)?;
    let mut stream = stage.connect()?;
    let message = vm.message(&["page_size", "page_size_kib"]);
    send(&mut stream, &message.as_bytes()[..message.len() / 2], Some(&vm.uffd))?;
    stream.shutdown(Shutdown::Write)?;
    stage.ready()
}

fn not_json(stage: &Stage) -> Result<(), Unmet> {
    let vm = Vm::new(stage)?;
    let mut stream = stage.connect()?;
    send(&mut stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Some(&vm.uffd))?;
    stage.ready()
}

fn no_descriptor(stage: &Stage) -> Result<(), Unmet> {
    let vm = Vm::new(stage)?;
    let mut stream = stage.connect()?;
    send(&mut stream, vm.message(&["page_size", "page_size_kib"]).as_bytes(), None)?;
    stage.ready()
}

fn never(stage: &Stage) -> Result<(), Unmet> {
    let _stream = stage.connect()?;
    stage.ready()
}
