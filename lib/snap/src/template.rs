//! `wrenn-snap template`: a paused sandbox becomes something that others are made from.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use wire::{Call, Document, Field, Map, Reply, Type, Undo, Value, Verb, json};

use crate::pack::text;
use crate::{Error, directory, merge, place, unpack};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("dir", Type::Path, "the paused sandbox's snapshot"),
        Field::may(
            "rootfs",
            Type::Path,
            "its flattened disk, which stays; in a sandbox's document snapshot.rootfs, default cow.out",
        ),
        Field::need("out", Type::Path, "the template's directory; never over an existing one"),
        Field::may("meta", Type::Object, "more fields for meta.json"),
    ],
    reply: &[Field::need(
        "template",
        Type::Object,
        "the template: {dir, bytes on disk, build of its memory, meta}",
    )],
    example: "wrenn-snap template dir=/tmp/snapshot rootfs=/tmp/rootfs.ext4 out=/tmp/template",
    ..Verb::new(
        "template",
        "assemble state, merged memory and a disk into a template, published in one rename",
        run,
    )
};

/// The disk's name in a template.
const ROOTFS: &str = "rootfs.ext4";
/// The description's name in a template.
const META: &str = "meta.json";

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let fields = call.fields();
    let (dir, out): (PathBuf, PathBuf) = (fields.need("dir")?, fields.need("out")?);
    let rootfs = rootfs(call)?;
    let more = fields.find::<Map<String, Value>>("meta")?.unwrap_or_default();
    let snapshot = Snapshot::open(&dir)?;
    let meta = describe(call.document, &snapshot, more);
    let made = snapshot.publish(&rootfs, &out, &meta, call.undo)?;
    let Made { bytes, build } = made;
    call.answer("template", json!({"dir": text(&out), "bytes": bytes, "build": build, "meta": meta}));
    Ok(Reply::Document)
}

/// The flattened disk. At the top level of a sandbox's document `rootfs` is the image it was made from: not that one.
fn rootfs(call: &Call) -> Result<PathBuf, wire::Error> {
    if call.document.id()?.is_none() {
        return call.fields().need("rootfs");
    }
    match call.document.find("snapshot.rootfs")? {
        Some(rootfs) => Ok(rootfs),
        None => call.document.find("cow.out")?.ok_or_else(|| {
            wire::Error::field("snapshot.rootfs", "missing, and so is cow.out; wants the flattened disk")
        }),
    }
}

/// A paused sandbox's snapshot.
struct Snapshot {
    dir: PathBuf,
    vmm: &'static str,
    /// Files of the VMM's state.
    state: &'static [&'static str],
    /// Bytes of memory; `None` in a VMM's own form, without a header.
    size: Option<u64>,
    /// Where a restore must show the disk, if the VMM's state says.
    sandbox_dir: Option<String>,
}

/// A template that was made.
struct Made {
    bytes: u64,
    build: Option<String>,
}

impl Snapshot {
    fn open(dir: &Path) -> Result<Self, Error> {
        let names = directory::names(dir)?;
        let (vmm, state) = directory::vmm(&names).ok_or_else(|| Error::NoState { dir: dir.to_owned() })?;
        let has_own_memory = names.iter().any(|name| name == directory::RANGES);
        let size = match directory::read_header(dir) {
            Ok(header) => Some(header.size),
            Err(Error::NoSnapshot { .. }) if has_own_memory => None,
            Err(error) => return Err(error),
        };
        let fixed = vmm == directory::CLOUD_HYPERVISOR;
        let sandbox_dir = fixed.then(|| directory::sandbox_dir(dir)).transpose()?;
        Ok(Self { dir: dir.to_owned(), vmm, state, size, sandbox_dir })
    }

    /// Assembles the template beside `out` and gives it its name in one step.
    fn publish(&self, rootfs: &Path, out: &Path, meta: &Value, undo: &mut Undo) -> Result<Made, wire::Error> {
        let disk = File::open(rootfs).map_err(Error::io("open", rootfs))?;
        directory::regular_length(&disk, rootfs)?;
        if out.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: out.to_owned() }.into());
        }
        out.file_name().ok_or_else(|| Error::field("out", "must end in a name"))?;
        let beside = wire::partial(out);
        make_dir(&beside, undo)?;

        let build = self.memory_into(&beside, undo)?;
        for name in self.state {
            place::carry(&self.dir.join(name), &beside.join(name), undo)?;
        }
        wire::check_interrupt()?;
        place::carry_shared(rootfs, &beside.join(ROOTFS), undo)?;
        place::write_new(&beside.join(META), format!("{meta:#}\n").as_bytes(), undo)?;
        sync_files(&beside)?;
        let bytes = bytes_on_disk(&beside)?;

        wire::check_interrupt()?;
        place::rename_new(&beside, out)?;
        undo_dir(out, undo);
        place::sync_dir(out.parent().unwrap_or(out))?;
        Ok(Made { bytes, build })
    }

    /// Puts all of the memory into `out`, in the form that the VMM's restore wants. Returns its build, if it has one.
    fn memory_into(&self, out: &Path, undo: &mut Undo) -> Result<Option<String>, wire::Error> {
        let ranges = out.join(directory::RANGES);
        match self.size {
            None => place::carry(&self.dir.join(directory::RANGES), &ranges, undo)?,
            // Nobody serves it page by page: it reads the plain file itself.
            Some(_) if self.vmm == directory::CLOUD_HYPERVISOR => {
                unpack::unpack(&self.dir, &ranges, 0, None, undo)?;
            }
            Some(_) => {
                let (header, _) = merge::merge(&self.dir, Some(out), 0, None, undo)?;
                return Ok(Some(header.build.to_string()));
            }
        }
        Ok(None)
    }
}

/// The description: what a sandbox made from this template must be like, and where it comes from.
fn describe(document: &Document, snapshot: &Snapshot, more: Map<String, Value>) -> Value {
    let mut meta = Map::new();
    for (name, path) in [
        // First what a paused sandbox's document has only there, then what is true while it runs.
        ("version", "pause.version"),
        ("vcpus", "spec.vcpus"),
        ("memory_mib", "spec.memory_mib"),
        ("disk_mib", "spec.disk_mib"),
        ("vmm", "vm.vmm"),
        ("version", "vm.version"),
        ("workdir", "vm.workdir"),
        ("user", "spec.user"),
        ("template", "spec.template"),
        ("kernel", "kernel"),
        ("initrd", "initrd"),
        ("cmdline", "cmdline"),
        ("guest_version", "guest.version"),
    ] {
        if let Some(value) = document.get(path) {
            meta.insert(name.into(), value.clone());
        }
    }
    meta.entry("vmm").or_insert_with(|| snapshot.vmm.into());
    if let Some(size) = snapshot.size {
        meta.entry("memory_mib").or_insert_with(|| (size >> 20).into());
    }
    meta.insert("created_at".into(), wire::timestamp().into());
    meta.extend(more);
    // Whoever makes a template of a sandbox made from a template finds the first one's path here again: no restore
    // changes it.
    if let Some(place) = &snapshot.sandbox_dir {
        meta.insert("sandbox_dir".into(), place.as_str().into());
    }
    meta.into()
}

/// Makes the directory in which the template is assembled. What a killed run of the same pid has left in it goes first.
fn make_dir(dir: &Path, undo: &mut Undo) -> Result<(), Error> {
    place::gone(fs::remove_dir_all(dir)).map_err(Error::io("remove", dir))?;
    fs::create_dir(dir).map_err(Error::io("make directory", dir))?;
    undo_dir(dir, undo);
    Ok(())
}

fn undo_dir(dir: &Path, undo: &mut Undo) {
    let dir = dir.to_owned();
    undo.push(dir.display().to_string(), move || {
        place::gone(fs::remove_dir_all(&dir)).map_err(|error| Error::io("remove", dir)(error).into())
    });
}

/// Syncs every file, also those that came as links, and the directory.
fn sync_files(dir: &Path) -> Result<(), Error> {
    for name in directory::names(dir)? {
        let path = dir.join(name);
        File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))?;
    }
    place::sync_dir(dir)
}

fn bytes_on_disk(dir: &Path) -> Result<u64, Error> {
    let allocated = |name: String| {
        let path = dir.join(name);
        fs::metadata(&path).map(|metadata| metadata.blocks() * 512).map_err(Error::io("examine", path))
    };
    directory::names(dir)?.into_iter().map(allocated).sum()
}
