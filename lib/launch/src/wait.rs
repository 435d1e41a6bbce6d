//! `wrenn-launch wait`: blocks until the VMM has ended, and says so in one event.

use std::os::fd::AsFd;

use nix::errno::Errno;
use sys::process::any_readable;
use wire::{Call, Reply, json};

use crate::Error;
use crate::section::Vm;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let vm = Vm::read(call.document)?;
    let pid = vm.process.pid;
    if vm.is_alive(call.host, &id)? {
        let io = |source| Error::Io { what: "wait for", path: format!("/proc/{pid}").into(), source };
        if let Some(pidfd) = vm.process.pidfd().map_err(io)? {
            until_readable(&pidfd).map_err(io)?;
        }
    }
    call.emit("exited", json!({"id": id.as_str(), "pid": pid}))?;
    Ok(Reply::Streamed(0))
}

fn until_readable(fd: &impl AsFd) -> Result<(), std::io::Error> {
    let fds: Vec<_> = [fd.as_fd()].into_iter().chain(sys::signals::fd()).collect();
    loop {
        match any_readable(&fds)?[0] {
            true => return Ok(()),
            false if sys::signals::pending().is_some() => return Err(Errno::EINTR.into()),
            false => {}
        }
    }
}
