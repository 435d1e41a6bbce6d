//! One sandbox's VM under watch, from when it is taken up until it ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use sys::process::Process;
use wire::{Document, Error, Value};

use super::alarm::Alarm;
use super::idle::Idle;

/// USER_HZ: the unit of start times in /proc on every architecture Wrenn runs on.
const TICKS_PER_SECOND: u64 = 100;

/// How long a page server whose guardian is gone may take to say that it serves.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Vmm,
    PageServer,
}

/// A running VM.
#[derive(Debug)]
pub struct Life {
    vmm: Watched,
    /// By the name that the document has for it: its guardian, which may be dead while the server goes on.
    server: Option<(Process, Watched)>,
    pub idle: Idle,
    pub alarm: Alarm,
    /// Whether it is: a VM ends with its page server, and the other way round.
    pub over: bool,
}

/// A process, and its pidfd until it has ended.
#[derive(Debug)]
struct Watched {
    process: Process,
    fd: Option<OwnedFd>,
}

impl Life {
    /// Takes a running sandbox under watch. The processes are those that the document names, by start time and boot, or
    /// they are gone.
    pub fn adopt(document: &Document) -> Result<Self, Error> {
        let vmm = Watched::new(document.process("vm")?)?;
        let server = match document.get("uffd.pid") {
            Some(_) => {
                let named = document.process("uffd")?;
                let serving = uffd::serving(document, PATIENCE)?.unwrap_or_else(|| named.clone());
                Some((named, Watched::new(serving)?))
            }
            None => None,
        };
        let over = vmm.fd.is_none() || server.as_ref().is_some_and(|(_, server)| server.fd.is_none());
        let idle = Idle::adopted(noted(document), age(&vmm.process), wire::now_ms());
        Ok(Self { vmm, server, idle, alarm: Alarm::default(), over })
    }

    /// Whether this is the VM that the document names.
    pub fn is_of(&self, document: &Document) -> bool {
        let same = |section: &str, process: Option<&Process>| match document.get(&format!("{section}.pid")) {
            None => process.is_none(),
            Some(_) => document.process(section).ok().as_ref() == process,
        };
        same("vm", Some(&self.vmm.process)) && same("uffd", self.server.as_ref().map(|(named, _)| named))
    }

    /// The document says this now. Gives whether the sandbox has been used since.
    pub fn see(&mut self, document: &Document) -> bool {
        let before = self.idle.noted().map(str::to_owned);
        self.idle.see(noted(document));
        self.idle.noted() != before.as_deref()
    }

    /// When its time to live ends, if nothing happens.
    pub fn expires(&self, document: &Document) -> Option<Instant> {
        self.idle.lasts(document.find("spec.timeout_s").ok().flatten().unwrap_or(0))
    }

    /// The descriptors of what has not ended.
    pub fn descriptors(&self) -> impl Iterator<Item = (Which, BorrowedFd<'_>)> {
        let server = self.server.as_ref().and_then(|(_, server)| server.fd.as_ref());
        let vmm = self.vmm.fd.as_ref().map(|fd| (Which::Vmm, fd.as_fd()));
        server.map(|fd| (Which::PageServer, fd.as_fd())).into_iter().chain(vmm)
    }

    /// This process has ended.
    pub fn ended(&mut self, which: Which) {
        self.over = true;
        match which {
            Which::Vmm => self.vmm.fd = None,
            Which::PageServer => self.server.iter_mut().for_each(|(_, server)| server.fd = None),
        }
    }
}

impl Watched {
    fn new(process: Process) -> Result<Self, Error> {
        let fd = process.pidfd().map_err(|error| {
            let message = format!("cannot watch process {}", process.pid);
            Error::new(wire::Kind::of_io(&error), "watch.process", message).detail(error)
        })?;
        Ok(Self { process, fd })
    }
}

fn noted(document: &Document) -> Option<String> {
    document.get("last_active_at").and_then(Value::as_str).map(str::to_owned)
}

/// Since its start, by the clock that start times are of, which nobody sets.
fn age(process: &Process) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    let started = Duration::from_millis(process.start_time * 1000 / TICKS_PER_SECOND);
    now.saturating_sub(started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    fn child() -> (Child, Value) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of_pid(child.id() as i32).unwrap();
        let fields =
            wire::json!({"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id});
        (child, fields)
    }

    fn document(vm: &Value, uffd: Option<&Value>) -> Document {
        let mut document = Document::new();
        document.set("vm", vm.clone());
        document.set("spec.timeout_s", 5);
        if let Some(uffd) = uffd {
            document.set("uffd", uffd.clone());
        }
        document
    }

    #[test]
    fn a_process_is_adopted_by_pid_start_time_and_boot_and_no_other() {
        let (mut child, vm) = child();
        let life = Life::adopt(&document(&vm, None)).unwrap();
        assert!(!life.over && life.descriptors().count() == 1);
        assert!(life.is_of(&document(&vm, None)) && !life.is_of(&document(&vm, Some(&vm))));
        let mut other = vm.clone();
        other["start_time"] = (vm["start_time"].as_u64().unwrap() + 1).into();
        assert!(!life.is_of(&document(&other, None)));
        let reused = Life::adopt(&document(&other, None)).unwrap();
        assert!(reused.over && reused.descriptors().count() == 0);
        other["boot_id"] = "another".into();
        assert!(Life::adopt(&document(&other, None)).unwrap().over);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_end_of_either_process_is_the_end_and_it_is_not_looked_at_again() {
        let (mut vmm, vm) = child();
        let (mut server, uffd) = child();
        for which in [Which::Vmm, Which::PageServer] {
            let mut life = Life::adopt(&document(&vm, Some(&uffd))).unwrap();
            assert!(!life.over && life.descriptors().count() == 2);
            life.ended(which);
            let left: Vec<Which> = life.descriptors().map(|(which, _)| which).collect();
            assert!(life.over && left.len() == 1 && left[0] != which);
        }
        for child in [&mut vmm, &mut server] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let life = Life::adopt(&document(&vm, Some(&uffd))).unwrap();
        assert!(life.over && life.descriptors().count() == 0);
    }

    #[test]
    fn a_use_is_seen_by_a_change_of_the_document_alone() {
        let (mut child, vm) = child();
        let mut document = document(&vm, None);
        let mut life = Life::adopt(&document).unwrap();
        assert!(!life.see(&document));
        document.set("last_active_at", "2026-11-22T01:01:33.456Z");
        assert!(life.see(&document) && !life.see(&document));
        assert!(life.expires(&document).unwrap() > Instant::now() + Duration::from_secs(4));
        document.set("spec.timeout_s", 0);
        assert_eq!(life.expires(&document), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
