//! `wrenn snapshot`: a template of a sandbox.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use store::{Pauses, Templates};
use wire::{Call, Document, Error, Kind, Reply, TemplateName};

use crate::sandbox::{Sandbox, roll_back};
use crate::{failed, pause};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let text: String = call.document.need("name")?;
    let name = TemplateName::new(&text).map_err(|error| Error::field("name", error.message))?;
    let stay_paused: bool = call.document.find("stay_paused")?.unwrap_or(false);
    let mut sandbox = Sandbox::at_rest(call.host, call.id()?, call.options)?;
    sandbox.expect(&["running", "paused"])?;
    let templates = Templates::of(call.host);
    let _alone = templates.hold_alone(&name, call.options.wait)?;
    templates.check_free(&name)?;

    if stay_paused && sandbox.state() == "running" {
        pause::pause(&mut sandbox)?;
    }
    let plan = Plan { out: templates.dir(&name), rootfs: templates.unfinished_disk(&name, &sandbox.id) };
    plan.clear()?;
    let made = match sandbox.state() {
        "running" => plan.of_running(&mut sandbox),
        _ => plan.of_paused(&mut sandbox),
    };
    let _ = fs::remove_file(&plan.rootfs);
    made?;
    sandbox.answer(call);
    call.document.remove("stay_paused");
    call.document.set("template", name.as_str());
    call.document.set("template_dir", plan.out.to_string_lossy().into_owned());
    call.document.set("template_bytes", bytes_on_disk(&plan.out)?);
    Ok(Reply::Document)
}

/// A template to be: flattened disk, merged memory and the VM's state, published in one rename.
struct Plan {
    out: PathBuf,
    rootfs: PathBuf,
}

impl Plan {
    /// Makes room for it.
    fn clear(&self) -> Result<(), Error> {
        let parent = self.out.parent().unwrap_or(&self.out);
        fs::create_dir_all(parent).map_err(|error| file("create", parent, &error))?;
        match fs::remove_file(&self.rootfs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(file("remove", &self.rootfs, &error))
            }
            _ => Ok(()),
        }
    }

    fn of_paused(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        let paused = sandbox.document.clone();
        let made = sandbox
            .begin("snapshot", "snapshotting")
            .and_then(|()| self.flatten(sandbox))
            .and_then(|()| self.publish(sandbox));
        sandbox.document = paused;
        let settled = sandbox.settle("paused");
        made.map_err(|error| roll_back(error, settled.clone().err().map_or(Ok(()), Err)))?;
        settled
    }

    /// The guest stands still while its memory is dumped and its disk is copied; the rest is done behind its back. The
    /// generation stays: the VMM's dirty log is relative to it, so the next pause is a Diff.
    fn of_running(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        let running = sandbox.document.clone();
        let pauses = Pauses::of(sandbox.host, &sandbox.id);
        let dir = pauses.next()?;
        sandbox.document.set("snapshot", pause::section(&running, &dir)?);
        let made = sandbox
            .begin("snapshot", "snapshotting")
            .and_then(|()| pause::freeze(sandbox))
            .and_then(|()| self.flatten(sandbox))
            .and_then(|()| sandbox.step(&launch::TOOL, "resume"))
            .and_then(|()| pause::checked(sandbox, &snap::TOOL, "pack"))
            .and_then(|()| self.publish(sandbox));
        if let Err(error) = made {
            let back = pause::give_back(sandbox, &running, &dir);
            return Err(roll_back(error, back));
        }
        pause::shorten(sandbox);
        sandbox.note("files");
        if let Err(error) = failed::discard_unwanted(sandbox) {
            log::warn!("{}: {error}", sandbox.id);
        }
        match running.get("snapshot") {
            Some(origin) => sandbox.document.set("snapshot", origin.clone()),
            None => drop(sandbox.document.remove("snapshot")),
        }
        sandbox.settle("running")
    }

    fn flatten(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        wire::check_interrupt()?;
        sandbox.step_with(&cow::TOOL, "flatten", &[("cow.out", path(&self.rootfs))])
    }

    fn publish(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        wire::check_interrupt()?;
        let fields = [("snapshot.rootfs", path(&self.rootfs)), ("snapshot.out", path(&self.out))];
        sandbox.step_with(&snap::TOOL, "template", &fields)
    }
}

fn path(path: &Path) -> wire::Value {
    path.to_string_lossy().into()
}

fn file(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::new(Kind::of_io(error), "wrenn.file", format!("cannot {what} {}", path.display())).detail(error)
}

/// What the files of a directory take on disk. One linked twice counts once.
pub fn bytes_on_disk(dir: &Path) -> Result<u64, Error> {
    let mut seen = std::collections::HashSet::new();
    let mut total = 0;
    for entry in fs::read_dir(dir).map_err(|error| file("read", dir, &error))?.flatten() {
        let metadata = entry.metadata().map_err(|error| file("read", &entry.path(), &error))?;
        if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
            total += metadata.blocks() * 512;
        }
    }
    Ok(total)
}

/// A template as `template ls` and `get` show it.
pub fn describe(template: &store::Template) -> Result<Document, Error> {
    let mut shown = Document::new();
    shown.set("name", template.name.as_str());
    shown.set("kind", if template.is_snapshot() { "snapshot" } else { "image" });
    shown.set("dir", template.dir.to_string_lossy().into_owned());
    shown.set("bytes", bytes_on_disk(&template.dir)?);
    if let Some(meta) = &template.meta {
        shown.set("meta", meta.clone().into_value());
    }
    Ok(shown)
}
