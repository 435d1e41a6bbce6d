//! The journal: while an operation is at work on a sandbox, the section `op` of its document says which, by whom, and the
//! step that comes next, written before that step acts. An `op` that is found under the sandbox's lock is one that was
//! killed: `reconcile` finishes or undoes it.

use store::Sandboxes;
use sys::process::Process;
use wire::{Error, Kind, json};

use crate::sandbox::Sandbox;

const OP: &str = "op";

impl Sandbox<'_> {
    /// Records that an operation begins, and the state the sandbox is in meanwhile.
    pub fn begin(&mut self, verb: &str, state: &str) -> Result<(), Error> {
        log::info!("{}: {verb}: {state}", self.id);
        let me = Process::current().map_err(|error| {
            Error::new(Kind::of_io(&error), "wrenn.self", "cannot read /proc/self/stat").detail(error)
        })?;
        self.document.set("state", state);
        let at = wire::timestamp();
        self.document.set(
            OP,
            json!({"verb": verb, "step": "begin", "pid": me.pid, "start_time": me.start_time,
                   "boot_id": me.boot_id, "at": at}),
        );
        self.save()
    }

    /// Records the step that comes next. It is not waited for until this is on a disk, and an operation goes on without it: it
    /// only tells whoever comes after the death of this process more than the state does.
    pub fn note(&mut self, step: &str) {
        log::debug!("{}: {step}", self.id);
        if self.document.get(OP).is_none() {
            return;
        }
        self.document.set("op.step", step);
        self.document.set("op.at", wire::timestamp());
        if let Err(error) = Sandboxes::of(self.host).note(&self.id, &self.document) {
            log::warn!("{}: the step {step} is not recorded: {error}", self.id);
        }
    }

    /// Records that the operation is over, and the state the sandbox is in from now on.
    pub fn settle(&mut self, state: &str) -> Result<(), Error> {
        log::info!("{}: {state}", self.id);
        self.document.remove(OP);
        self.document.set("state", state);
        self.save()
    }

    /// The step that an operation was at when it was killed.
    pub fn killed_at(&self) -> Option<String> {
        let text = |name: &str| Some(self.document.get(&format!("{OP}.{name}"))?.as_str()?.to_owned());
        Some(format!("{} at {}", text("verb")?, text("step")?))
    }
}
