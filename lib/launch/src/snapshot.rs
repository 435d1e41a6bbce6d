//! `wrenn-launch snapshot`: a paused VM's state and raw memory, written into the new generation's directory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wire::{Call, Document, Reply, Undo};

use crate::driver::{Driver, Dump, RAW};
use crate::handed::Handed;
use crate::runfiles::{Base, RunFiles, remove};
use crate::section::{State, Vm};
use crate::{Error, complete};

/// For a VMM that is still reading the snapshot that this VM came from: minutes for many gigabytes.
const COMPLETE: Duration = Duration::from_secs(120);

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let id = call.id()?;
    let vm = Vm::read(call.document)?;
    let target = Target::read(call.document, vm.driver)?;
    let files = RunFiles::of(call.host, &id);
    if target.diff {
        check_base(call.document, &files)?;
    }
    let mut api = vm.connect(call.host, &id)?;
    let state = vm.driver.state(&mut api)?;
    if state != State::Paused {
        let needs = "wrenn-launch pause it first";
        return Err(Error::State { id: id.to_string(), state: state.name().into(), needs }.into());
    }

    complete::await_of(&vm, call.host, &id, COMPLETE)?;

    // What the guest has flushed is in the block device's cache: now it goes to the file behind it.
    sync_disk(call.document)?;
    target.make(call.undo)?;
    // Since the boot every page that is not zero has been written: what was written is all there is, and the holes
    // between it read as the zeros they stand for.
    let first = vm.driver.abilities().diffs && files.read_base() == Some(Base::Boot);
    let dump = Dump { dir: Handed::dir(&target.dir)?, diff: target.diff || first };
    // From the request on the VMM may have forgotten its dirty pages, whatever becomes of the answer.
    files.forget_base()?;
    vm.driver.snapshot(&mut api, &dump)?;
    for name in vm.driver.state_files().iter().chain(&[RAW, "."]) {
        sync(&target.dir.join(name))?;
    }

    let dir = target.dir.canonicalize().map_err(Error::io("resolve", &target.dir))?;
    files.write_base(&Base::Snapshot(dir.clone()))?;
    call.undo.push("base of the dirty log", move || Ok(files.forget_base()?));
    call.document.set("snapshot.raw", target.dir.join(RAW).to_string_lossy());
    call.document.set("vm.base", dir.to_string_lossy());
    Ok(Reply::Document)
}

/// Where a snapshot goes.
struct Target {
    dir: PathBuf,
    /// What the VMM writes.
    files: Vec<PathBuf>,
    diff: bool,
}

impl Target {
    fn read(document: &Document, driver: &dyn Driver) -> Result<Self, wire::Error> {
        let fields = document.fields("snapshot");
        let dir: PathBuf = fields.need("dir")?;
        let kind: String = fields.need("kind")?;
        let diff = match kind.as_str() {
            "full" => false,
            "diff" if !driver.abilities().diffs => {
                return Err(Error::NoDiffs { vmm: driver.name() }.into());
            }
            "diff" => true,
            other => {
                return Err(wire::Error::field(
                    "snapshot.kind",
                    format!("must be full or diff, not {other:?}"),
                ));
            }
        };
        let names = driver.state_files().iter().copied().chain([driver.memory_file(), RAW]);
        let files: Vec<_> = names.map(|name| dir.join(name)).collect();
        // Firecracker would merge into a memory file that is there, and overwrite a state.
        match files.iter().find(|path| path.symlink_metadata().is_ok()) {
            Some(path) => Err(Error::SnapshotExists { path: path.clone() }.into()),
            None => Ok(Self { dir, files, diff }),
        }
    }

    /// Makes the directory where it is missing, and remembers to remove what the VMM will write.
    fn make(&self, undo: &mut Undo) -> Result<(), Error> {
        match fs::create_dir(&self.dir) {
            Ok(()) => {
                let dir = self.dir.clone();
                undo.push(format!("directory {}", dir.display()), move || {
                    fs::remove_dir(&dir).map_err(Error::io("remove", &dir))?;
                    Ok(())
                });
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Io { what: "make", path: self.dir.clone(), source }),
        }
        for path in self.files.clone() {
            undo.push(format!("file {}", path.display()), move || {
                remove(&path).map_err(Error::io("remove", &path))?;
                Ok(())
            });
        }
        Ok(())
    }
}

/// A Diff holds what changed since the VMM's last dump or load. That must be the parent it will be read on top of, and
/// both the document and the VMM's own run directory must know it (a dump that failed has erased the latter).
fn check_base(document: &Document, files: &RunFiles) -> Result<(), wire::Error> {
    let Some(parent) = document.fields("snapshot").find::<PathBuf>("parent")? else {
        return Err(wire::Error::field(
            "snapshot.parent",
            "missing; a diff needs the snapshot it is relative to",
        ));
    };
    let shown = parent.display().to_string();
    let no = |why: String| Err(Error::Base { parent: shown.clone(), why }.into());
    let Some(base) = document.find::<PathBuf>("vm.base")? else {
        return no("this VM was never restored from or written to a snapshot".into());
    };
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if resolved(&parent) != resolved(&base) {
        return no(format!("the VM's dirty log is relative to {}", base.display()));
    }
    match files.read_base() {
        Some(Base::Snapshot(known)) if resolved(&known) == resolved(&base) => Ok(()),
        _ => no("a dump of this VM failed or was taken back since".into()),
    }
}

fn sync_disk(document: &Document) -> Result<(), wire::Error> {
    let disk = match document.find::<PathBuf>("cow.device")? {
        Some(device) => Some(device),
        None => document.find::<PathBuf>("rootfs")?,
    };
    Ok(disk.map_or(Ok(()), |path| sync(&path))?)
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}
