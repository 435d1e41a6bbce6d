//! `wrenn-launch stop`: the VMM ends, and its sockets and log go. What is gone already is success.

use std::time::Duration;

use nix::errno::Errno;
use sys::process::Process;
use wire::{Call, Host, Id, Reply};

use crate::runfiles::RunFiles;
use crate::section::Vm;
use crate::{Error, owner};

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let named = call.document.get("vm").map(|_| Vm::read(call.document)).transpose()?;
    let id = call.id()?;
    let mut errors = Vec::new();
    for process in targets(call, &id, named)? {
        // Killed, not asked: nothing of a VM is kept that a snapshot has not, and Cloud Hypervisor, asked while its VM is
        // paused, would first let the devices carry out what the guest had queued, behind its snapshot's back.
        if let Err(source) = process.end(Duration::ZERO) {
            let path = format!("/proc/{}", process.pid).into();
            errors.push(Error::Io { what: "end", path, source: errno_of(source) });
        }
    }
    let files = RunFiles::of(call.host, &id);
    // An old document must not take the socket of the VMM that this sandbox has by now.
    match files.listener() {
        Some(pid) => log::info!("{id}: process {pid} answers on {}, left alone", files.socket().display()),
        None => errors.extend(files.remove_all()),
    }
    wire::Error::all(errors.into_iter().map(wire::Error::from))?;
    call.document.remove("vm");
    Ok(Reply::Document)
}

/// The process that the document names; where it names none, whatever carries the sandbox's mark (a boot whose program
/// was killed has no section to show).
fn targets(call: &Call, id: &Id, named: Option<Vm>) -> Result<Vec<Process>, wire::Error> {
    let Some(vm) = named else { return Ok(marked(call.host, id)) };
    Ok(if vm.is_alive(call.host, id)? { vec![vm.process] } else { vec![] })
}

fn marked(host: &Host, id: &Id) -> Vec<Process> {
    owner::find(host).into_iter().filter(|(owner, _)| owner == id).map(|(_, process)| process).collect()
}

/// A process that outlasts SIGKILL hangs in the kernel; waiting for it has a limit.
fn errno_of(error: std::io::Error) -> std::io::Error {
    match error.kind() {
        std::io::ErrorKind::TimedOut => Errno::ETIMEDOUT.into(),
        _ => error,
    }
}
