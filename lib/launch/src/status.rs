//! `wrenn-launch status`: what the VM does, and what its process costs.

use std::fs;

use sys::process::Process;
use wire::{Call, Reply, json};

use crate::section::Vm;
use crate::{Error, complete};

/// USER_HZ: the unit of /proc/PID/stat on every architecture Wrenn runs on.
const TICKS_PER_SECOND: u64 = 100;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let vm = Vm::read(call.document)?;
    let pid = vm.process.pid;
    let mut api = match vm.connect(call.host, &id) {
        Ok(api) => api,
        Err(Error::Gone { .. }) => {
            call.document.set("vm.state", "gone");
            return Ok(Reply::Document);
        }
        Err(error) => return Err(error.into()),
    };
    call.document.set("vm.state", vm.driver.state(&mut api)?.name());
    call.document.set("vm.version", vm.driver.version(&mut api)?);
    if !vm.driver.abilities().page_server {
        call.document.set("vm.complete", complete::is_complete(&vm)?);
    }
    if let Some((cpu_ms, rss_bytes)) = usage_of(pid) {
        call.document.set("vm.cpu_ms", cpu_ms);
        call.document.set("vm.rss_bytes", rss_bytes);
    }
    // A VMM without a balloon, or whose guest has no driver for it yet, has none to tell of.
    match vm.driver.balloon(&mut api) {
        Ok((target, actual)) => {
            call.document.set("vm.balloon", json!({"target_mib": target, "actual_mib": actual}));
        }
        Err(error) => log::debug!("no balloon: {error}"),
    }
    Ok(Reply::Document)
}

/// CPU time of a process in milliseconds and its resident memory in bytes. `None` when it is gone.
pub fn usage(process: &Process) -> Option<(u64, u64)> {
    let read = usage_of(process.pid);
    // Looked at afterwards: then it was this process that was read, and not one that has its pid by now.
    read.filter(|_| process.is_alive())
}

fn usage_of(pid: i32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((cpu_ms(&stat)?, rss_bytes(&status)?))
}

/// Fields 14 and 15 of /proc/PID/stat. The command name, field 2, may hold anything, so counting starts behind it.
fn cpu_ms(stat: &str) -> Option<u64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) * 1000 / TICKS_PER_SECOND)
}

fn rss_bytes(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix("kB")?;
    Some(kib.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_from_the_fields_proc_documents() {
        let stat = "12 (fc) x) S 1 12 12 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 98765 1000 1";
        assert_eq!(cpu_ms(stat), Some(2000));
        assert_eq!(rss_bytes("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
        assert!(usage(&Process::current().unwrap()).is_some_and(|(_, rss)| rss > 0));
    }
}
