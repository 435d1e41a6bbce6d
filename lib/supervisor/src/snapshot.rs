//! `wrenn snapshot`: a template of a sandbox.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use store::Templates;
use wire::{Call, Document, Error, Kind, Reply, TemplateName};

use crate::sandbox::{Sandbox, roll_back};
use crate::{pause, resume};

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let text: String = call.document.need("name")?;
    let name = TemplateName::new(&text).map_err(|error| Error::field("name", error.message))?;
    let mut sandbox = Sandbox::of(call)?;
    sandbox.expect(&["running", "paused"])?;
    let templates = Templates::of(call.host);
    templates.check_free(&name)?;

    let was_running = sandbox.state() == "running";
    if was_running {
        pause::pause(&mut sandbox)?;
    }
    let out = templates.dir(&name);
    let made = make(&sandbox, &out);
    // Whether or not that worked, a sandbox that ran goes on running.
    let resumed = if was_running { resume::resume(&mut sandbox, None) } else { Ok(()) };
    match (made, resumed) {
        (Err(error), resumed) => return Err(roll_back(error, resumed)),
        (Ok(()), resumed) => resumed?,
    }
    sandbox.answer(call);
    call.document.set("template", name.as_str());
    call.document.set("template_dir", out.to_string_lossy().into_owned());
    call.document.set("template_bytes", bytes_on_disk(&out)?);
    Ok(Reply::Document)
}

/// Flattened disk, merged memory and the VM's state, published in one rename.
fn make(sandbox: &Sandbox, out: &Path) -> Result<(), Error> {
    let parent = out.parent().unwrap_or(out);
    fs::create_dir_all(parent).map_err(|error| file("create", parent, &error))?;
    // Beside its place, so that nothing crosses a file system.
    let rootfs = parent.join(format!(".rootfs-{}.ext4", sandbox.id));
    if let Err(error) = fs::remove_file(&rootfs)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(file("remove", &rootfs, &error));
    }
    let mut copy =
        Sandbox::new(sandbox.host, sandbox.id.clone(), sandbox.document.clone(), Default::default());
    let path = |path: &Path| wire::Value::from(path.to_string_lossy());
    let made = copy.step_with(&cow::TOOL, "flatten", &[("cow.out", path(&rootfs))]).and_then(|()| {
        let fields = [("snapshot.rootfs", path(&rootfs)), ("snapshot.out", path(out))];
        copy.step_with(&snap::TOOL, "template", &fields)
    });
    let _ = fs::remove_file(&rootfs);
    made
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
