//! `wrenn-cow flatten`: image and changes as one new image, without the kernel, at the cost of what changed.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use wire::{Call, Reply};

use crate::device;
use crate::disk::Kind;
use crate::exceptions::{self, CHUNK, Exception};
use crate::image::Image;
use crate::new_file::{NewFile, copy, sync_dir};
use crate::owner::Owner;
use crate::restore::open;
use crate::{Error, loops};

/// How much is read at once.
const BUFFER: u64 = 1 << 20;

/// The verb.
pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let owner = call.document.id()?.map(|id| Owner::new(call.host, id));
    let fields = call.fields();
    let file: PathBuf = fields.need("file")?;
    let out: PathBuf = fields.need("out")?;
    let kind = fields.find("kind")?.unwrap_or(Kind::Snapshot);
    if out.symlink_metadata().is_ok() {
        return Err(Error::Exists { what: out.display().to_string() }.into());
    }
    let dir = out.parent().unwrap_or(&out);
    let new = NewFile::in_dir(dir, 0o644).map_err(Error::io("make a file in", dir))?;
    match kind {
        Kind::Clone => flatten_clone(&file, &out, &new.file)?,
        Kind::Snapshot => {
            let image = match fields.find("image")? {
                Some(image) => image,
                None => call.document.need::<PathBuf>("rootfs")?,
            };
            let image = Image::open_again(&image, fields.find("origin_bytes")?)?;
            let store = still(&file, owner.as_ref())?;
            flatten(&image, &store, &file, &out, &new.file)?;
        }
    }
    new.file.sync_all().map_err(Error::io("sync", &out))?;
    wire::check_interrupt()?;
    new.publish(&out).map_err(Error::io("make", &out))?;
    call.undo.push(format!("file {}", out.display()), {
        let out = out.clone();
        move || Ok(std::fs::remove_file(&out).map_err(Error::io("remove", out))?)
    });
    sync_dir(dir).map_err(Error::io("sync", dir))?;
    Ok(Reply::Document)
}

/// The CoW file as it is at one moment: itself if no device uses it, else a copy (shared where the file system can) made
/// while the device is suspended. Only the copy is waited for by the guest.
fn still(file: &Path, owner: Option<&Owner>) -> Result<File, Error> {
    let live = open(file)?;
    let users = loops::users(file)?;
    let Some(user) = users.first() else { return Ok(live) };
    let found = match owner {
        Some(owner) => device::find(owner)?.map(|found| (owner, found)),
        None => None,
    };
    // What another device writes to cannot be held still from here.
    let Some((owner, (mapper, device))) = found.filter(|(owner, (mapper, _))| {
        device::loops_of(mapper, &owner.uuid()).is_some_and(|(.., cow)| cow.path() == user.path())
    }) else {
        let why = format!("{} has it; name the id of its sandbox", user.path().display());
        return Err(Error::Busy { what: file.display().to_string(), why });
    };
    let dir = file.parent().unwrap_or(file);
    let new = NewFile::in_dir(dir, 0o600).map_err(Error::io("make a file in", dir))?;
    let copied = || copy(&live, &new.file).map_err(Error::io("copy", file));
    device::while_suspended(&mapper, owner, &device, copied)?;
    new.file.try_clone().map_err(Error::io("copy", file))
}

/// A copy is a whole image already. One that is written meanwhile would be torn.
fn flatten_clone(file: &Path, out: &Path, to: &File) -> Result<(), Error> {
    let from = open(file)?;
    let stamp = || {
        from.metadata()
            .map(|metadata| (metadata.mtime(), metadata.mtime_nsec()))
            .map_err(Error::io("look at", file))
    };
    let before = stamp()?;
    copy(&from, to).map_err(Error::io("write", out))?;
    if stamp()? != before {
        return Err(Error::Busy {
            what: file.display().to_string(),
            why: "it was written while it was copied".into(),
        });
    }
    Ok(())
}

/// Writes the image with the changes of `store`, the CoW file `file`, into `to`, which is empty.
///
/// # Errors
/// When the CoW file is not what it should be, or reading or writing fails.
pub fn flatten(image: &Image, store: &File, file: &Path, out: &Path, to: &File) -> Result<(), Error> {
    let changes = exceptions::read(store, image.bytes).map_err(Error::store(file))?;
    copy(&image.file, to).map_err(Error::io("write", out))?;
    apply(&changes, image.bytes, store, file, out, to)
}

/// Writes the changed chunks over the image's; chunks of zeros become holes.
fn apply(
    changes: &[Exception],
    bytes: u64,
    store: &File,
    file: &Path,
    out: &Path,
    to: &File,
) -> Result<(), Error> {
    let mut buffer = vec![0; BUFFER as usize];
    for run in exceptions::runs(changes, bytes, BUFFER) {
        if sys::signals::pending().is_some() {
            return Err(Error::io("write", out)(std::io::ErrorKind::Interrupted.into()));
        }
        let content = &mut buffer[..(run.image.end - run.image.start) as usize];
        store.read_exact_at(content, run.file).map_err(Error::io("read", file))?;
        let (mut rest, mut at) = (&*content, run.image.start);
        while !rest.is_empty() {
            let (same, zero) = first_alike(rest);
            let end = at + same.len() as u64;
            let done = if zero { clear(to, at, same) } else { to.write_all_at(same, at) };
            done.map_err(Error::io("write", out))?;
            (rest, at) = (&rest[same.len()..], end);
        }
    }
    Ok(())
}

/// The chunks at the beginning that are all zeros, or all not, and which of the two.
fn first_alike(content: &[u8]) -> (&[u8], bool) {
    let mut chunks = content.chunks(CHUNK as usize).map(|chunk| (chunk.len(), is_zero(chunk)));
    let (mut length, zero) = chunks.next().unwrap_or((0, true));
    length += chunks.take_while(|(_, next)| *next == zero).map(|(length, _)| length).sum::<usize>();
    (&content[..length], zero)
}

fn is_zero(bytes: &[u8]) -> bool {
    // Block by block without a way out in between: the compiler makes vector code of it.
    bytes.chunks(256).all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Makes a hole, or writes the zeros where the file system has no holes.
fn clear(to: &File, at: u64, zeros: &[u8]) -> std::io::Result<()> {
    match sys::sparse::punch(to, at..at + zeros.len() as u64) {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => {
            to.write_all_at(zeros, at)
        }
        punched => punched,
    }
}
