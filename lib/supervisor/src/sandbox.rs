//! One sandbox under operation: its document, and the verbs of the tools that change it.

use std::fs;
use std::path::{Path, PathBuf};

use store::Sandboxes;
use wire::{Call, Document, Error, Host, Id, Kind, Options, Tool};

use crate::{failed, reconcile};

const MEMORY: &str = "memory-ranges";

/// A sandbox whose operation lock the caller holds.
pub struct Sandbox<'a> {
    pub host: &'a Host,
    pub id: Id,
    pub document: Document,
    options: Options,
}

impl<'a> Sandbox<'a> {
    /// The sandbox that the request names, as it was last saved.
    pub fn of(call: &Call<'a>) -> Result<Self, Error> {
        Self::load(call.host, call.id()?, call.options)
    }

    /// A sandbox whose lock the caller holds. What a killed operation has left of it is settled first.
    pub fn at_rest(host: &'a Host, id: Id, options: Options) -> Result<Self, Error> {
        let mut sandbox = Self::load(host, id, options)?;
        if let Some(killed) = sandbox.killed_at() {
            log::warn!("{}: {killed} was killed; settling that first", sandbox.id);
            reconcile::settle(&mut sandbox, &mut Vec::new())?;
        }
        Ok(sandbox)
    }

    pub fn load(host: &'a Host, id: Id, options: Options) -> Result<Self, Error> {
        let document = Sandboxes::of(host).load(&id)?;
        Ok(Self::new(host, id, document, options))
    }

    pub fn new(host: &'a Host, id: Id, document: Document, options: Options) -> Self {
        Self { host, id, document, options: Options { undo: false, ..options } }
    }

    pub fn state(&self) -> &str {
        self.document.get("state").and_then(|value| value.as_str()).unwrap_or_default()
    }

    /// Fails unless the sandbox is in one of these states. One that is found to have died is recorded as `failed`.
    pub fn expect(&mut self, states: &[&str]) -> Result<(), Error> {
        if self.state() == "running"
            && let Some(reason) = failed::reason(&self.document)
        {
            let done = failed::fail(self, &reason);
            return Err(roll_back(failed::error(self), done));
        }
        if states.contains(&self.state()) {
            return Ok(());
        }
        let message = format!("sandbox {} is {}, not {}", self.id, self.state(), states.join(" or "));
        Err(Error::new(Kind::Conflict, "wrenn.state", message))
    }

    pub fn save(&self) -> Result<(), Error> {
        Ok(Sandboxes::of(self.host).save(&self.id, &self.document)?)
    }

    /// One verb of a tool, noted in the journal before.
    pub fn step(&mut self, tool: &'static Tool, verb: &str) -> Result<(), Error> {
        self.step_with(tool, verb, &[])
    }

    /// One verb of a tool, with fields that are for this call only.
    pub fn step_with(
        &mut self,
        tool: &'static Tool,
        verb: &str,
        fields: &[(&str, wire::Value)],
    ) -> Result<(), Error> {
        log::info!("{}: {} {verb}", self.id, tool.name);
        self.note(&format!("{}.{verb}", tool.short));
        let before = self.document.clone();
        for (path, value) in fields {
            self.document.set(path, value.clone());
        }
        let done = tool.call(verb, &mut self.document, self.host, self.options);
        for (path, _) in fields {
            match before.get(path) {
                Some(value) => self.document.set(path, value.clone()),
                None => drop(self.document.remove(path)),
            }
        }
        done
    }

    /// All these verbs, going on past failures. Gives all failures together.
    pub fn every(&mut self, steps: &[(&'static Tool, &str)]) -> Result<(), Error> {
        let failed: Vec<_> = steps.iter().filter_map(|(tool, verb)| self.step(tool, verb).err()).collect();
        Error::all(failed)
    }

    /// Takes down what a running sandbox has on the host, its live disk too. Its pauses and its document stay.
    pub fn take_down(&mut self) -> Result<(), Error> {
        let memory = self.remove_memory();
        let rest = self.every(&[
            (&launch::TOOL, "stop"),
            (&uffd::TOOL, "stop"),
            (&net::TOOL, "remove"),
            (&cow::TOOL, "delete"),
        ]);
        Error::all([memory, rest].into_iter().filter_map(Result::err))
    }

    /// Where all of a pause's memory lies as one plain file while a VMM that wants it so opens it: on the pause's own file
    /// system, of which it can share the blocks.
    pub fn make_memory_path(&self) -> Result<PathBuf, Error> {
        let dir = self.live_dir();
        fs::create_dir_all(&dir).map_err(|error| self.file_error("make", &dir, error))?;
        Ok(dir.join(MEMORY))
    }

    /// Removes that file, and what a killed program has left of it.
    pub fn remove_memory(&self) -> Result<(), Error> {
        let is_memory = |name: &str| name == MEMORY || name.starts_with(&format!(".{MEMORY}."));
        let entries = fs::read_dir(self.live_dir()).into_iter().flatten().flatten();
        let found = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_memory));
        let removed = found.map(|entry| fs::remove_file(entry.path()).map_err(|error| (entry.path(), error)));
        Error::all(
            removed.filter_map(Result::err).map(|(path, error)| self.file_error("remove", &path, error)),
        )
    }

    fn live_dir(&self) -> PathBuf {
        self.host.sandbox_dir(&self.id).join("live")
    }

    fn file_error(&self, what: &str, path: &Path, error: std::io::Error) -> Error {
        let message = format!("cannot {what} {}", path.display());
        Error::new(Kind::of_io(&error), "wrenn.file", message).detail(error)
    }

    /// The sandbox was used just now.
    pub fn touch(&mut self) {
        self.document.set("last_active_at", wire::timestamp());
    }

    /// Makes the document the reply. What else the request carried is passed through.
    pub fn answer(self, call: &mut Call) {
        let request = std::mem::replace(call.document, self.document);
        for (name, value) in request.map() {
            call.document.map_mut().entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// The guest is not there any more. Who it was stays, for when it is woken.
pub fn forget_guest(document: &mut Document) {
    let machine_id = document.get("guest.machine_id").cloned();
    document.remove("guest");
    if let Some(machine_id) = machine_id {
        document.set("guest.machine_id", machine_id);
    }
}

/// After a failure: takes down what was built and adds what went wrong doing so to the error.
pub fn roll_back(error: Error, down: Result<(), Error>) -> Error {
    match down {
        Ok(()) => error,
        Err(more) => error.absorb(more),
    }
}
