//! How files get their names: complete and synced before anybody can see them, never over one that is there, and with
//! the step that takes them back.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use wire::Undo;

use crate::Error;

/// Makes a directory, unless it is there.
///
/// # Errors
/// `invalid` when something else has its name, what the kernel said otherwise.
pub fn create_dir(field: &'static str, dir: &Path, undo: &mut Undo) -> Result<(), Error> {
    match fs::create_dir(dir) {
        Ok(()) => {
            let made = dir.to_owned();
            undo.push(format!("directory {}", dir.display()), move || {
                gone(fs::remove_dir(&made)).map_err(|error| Error::io("remove", made)(error).into())
            });
            sync_dir(dir.parent().unwrap_or(dir))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            Err(Error::field(field, format!("{} is not a directory", dir.display())))
        }
        Err(error) => Err(Error::io("make directory", dir)(error)),
    }
}

/// Syncs a directory: the names in it survive a crash.
///
/// # Errors
/// What `fsync(2)` said.
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    // The directory of a bare file name is this one.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|file| file.sync_all()).map_err(Error::io("sync", dir))
}

/// A file under a name of its own beside its final one, which nobody takes for complete. Dropped, it is removed.
#[derive(Debug)]
pub struct Partial {
    /// Open for reading and writing.
    pub file: File,
    path: PathBuf,
    /// The name that it will have.
    pub target: PathBuf,
    named: bool,
    /// Tells that it is being written, and not left over: see [`is_left_over`].
    _lock: Option<Flock<File>>,
}

impl Partial {
    /// Begins the file that will be `target`.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn create(target: &Path) -> Result<Self, Error> {
        let path = wire::partial(target);
        // A guest's memory and disk are nobody else's to read.
        let file = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.map_err(Error::io("create", &path))?;
        // Not every file system has locks; there nothing is ever taken for left over.
        let copy = file.try_clone().map_err(Error::io("create", &path))?;
        let _lock = Flock::lock(copy, FlockArg::LockExclusiveNonblock).ok();
        Ok(Self { file, path, target: target.to_owned(), named: false, _lock })
    }

    /// Syncs it and gives it its name, which must be free. The directory is not synced.
    ///
    /// # Errors
    /// `conflict` when the name is taken; what the kernel said.
    pub fn publish(mut self, undo: &mut Undo) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        rename_new(&self.path, &self.target)?;
        self.named = true;
        undo_file(&self.target, undo);
        Ok(())
    }

    /// Syncs it and gives it its name in one step, also where another file has it. Undoing gives the name back to that
    /// file, which goes only when nothing can be undone any more.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn replace(mut self, undo: &mut Undo) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("sync", &self.path))?;
        match renameat2(AT_FDCWD, &self.path, AT_FDCWD, &self.target, RenameFlags::RENAME_EXCHANGE) {
            Err(Errno::ENOENT) => return self.publish(undo),
            exchanged => exchanged.map_err(|errno| Error::io("replace", &self.target)(errno.into()))?,
        }
        self.named = true;
        let (old, target) = (self.path.clone(), self.target.clone());
        remove_at_commit(&old, undo);
        undo.push(target.display().to_string(), move || {
            fs::rename(old, &target).map_err(|error| Error::io("give back", target)(error).into())
        });
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a file that was being written will never be finished: whoever wrote it is gone.
///
/// # Errors
/// What opening it said.
pub fn is_left_over(path: &Path) -> Result<bool, Error> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok())
}

/// Keeps everybody else from changing which files a snapshot is made of, until the work is committed or undone.
///
/// # Errors
/// `conflict` when somebody else does.
pub fn lock_dir(dir: &Path, undo: &mut Undo) -> Result<(), Error> {
    let file = File::open(dir).map_err(Error::io("open", dir))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            // Undone last.
            undo.push("lock", move || {
                drop(lock);
                Ok(())
            });
            Ok(())
        }
        Err((_, Errno::EWOULDBLOCK)) => Err(Error::Busy { dir: dir.to_owned() }),
        // Not every file system has locks.
        Err((_, errno)) => {
            log::warn!("cannot lock {}: {errno}", dir.display());
            Ok(())
        }
    }
}

/// Writes a small file whole: begun beside its name, synced, renamed.
///
/// # Errors
/// `conflict` when the name is taken; what the kernel said.
pub fn write_new(target: &Path, bytes: &[u8], undo: &mut Undo) -> Result<(), Error> {
    let partial = Partial::create(target)?;
    io::Write::write_all(&mut &partial.file, bytes).map_err(Error::io("write", target))?;
    partial.publish(undo)
}

/// Renames, unless the new name is taken.
///
/// # Errors
/// `conflict` when it is; what the kernel said.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), Error> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => Err(Error::Exists { path: to.to_owned() }),
        Err(errno) => Err(Error::io("rename to", to)(errno.into())),
    }
}

/// Brings a file that never changes along into another directory: as a hard link, else as a reflink, else as a copy.
///
/// # Errors
/// `conflict` when another file has the name; what the kernel said.
pub fn carry(from: &Path, to: &Path, undo: &mut Undo) -> Result<(), Error> {
    let source = fs::canonicalize(from).map_err(Error::io("open", from))?;
    match fs::hard_link(&source, to) {
        Ok(()) => undo_file(to, undo),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A pack that was killed had brought it along already.
            if !crate::spans::same_file(&source, to) {
                return Err(Error::Exists { path: to.to_owned() });
            }
        }
        Err(_) => copy_new(&source, to, undo)?,
    }
    Ok(())
}

/// Brings a file along that others might write to: as a reflink, else as a hard link (then nobody may), else as a copy.
///
/// # Errors
/// `conflict` when the name is taken; what the kernel said.
pub fn carry_shared(from: &Path, to: &Path, undo: &mut Undo) -> Result<(), Error> {
    let source = File::open(from).map_err(Error::io("open", from))?;
    let partial = Partial::create(to)?;
    match sys::sparse::clone_file(&source, &partial.file) {
        Ok(()) => partial.publish(undo),
        Err(_) => carry(from, to, undo),
    }
}

/// Makes an independent copy: a reflink, else a sparse copy. It is synced.
///
/// # Errors
/// `conflict` when the name is taken; what the kernel said.
pub fn copy_new(from: &Path, to: &Path, undo: &mut Undo) -> Result<(), Error> {
    let source = File::open(from).map_err(Error::io("open", from))?;
    let partial = Partial::create(to)?;
    if sys::sparse::clone_file(&source, &partial.file).is_err() {
        copy_sparse(&source, &partial.file).map_err(Error::io("copy", from))?;
    }
    partial.publish(undo)
}

fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    for data in sys::sparse::data(from) {
        let data = data?;
        copy_range(from, data.start, to, data.start, data.end - data.start)?;
    }
    Ok(())
}

/// Copies a range of one file into another, inside the kernel where it can.
///
/// # Errors
/// What the kernel said; `UnexpectedEof` when `from` ends earlier.
pub fn copy_range(mut from: &File, start: u64, mut to: &File, at: u64, length: u64) -> io::Result<()> {
    from.seek(SeekFrom::Start(start))?;
    to.seek(SeekFrom::Start(at))?;
    match io::copy(&mut io::Read::take(from, length), &mut to)? {
        copied if copied == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Whether copying from the one file to the other, which is empty and stays so, shares the data and moves none.
///
/// # Errors
/// What the kernel said.
pub fn shares(from: &File, to: &File) -> io::Result<bool> {
    let shared = sys::sparse::clone_range(from, 0..crate::spans::PAGE, to, 0).is_ok();
    to.set_len(0)?;
    Ok(shared)
}

/// Makes a hole, where the file system can: elsewhere the space stays taken.
///
/// # Errors
/// What the kernel said.
pub fn punch(file: &File, range: std::ops::Range<u64>) -> io::Result<()> {
    match sys::sparse::punch(file, range) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        done => done,
    }
}

/// Remembers that undoing removes this file.
pub fn undo_file(path: &Path, undo: &mut Undo) {
    let path = path.to_owned();
    undo.push(path.display().to_string(), move || {
        gone(fs::remove_file(&path)).map_err(|error| Error::io("remove", path)(error).into())
    });
}

/// "Already gone" is success.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Puts work off until the verb's result is delivered and nothing can be undone any more; undoing forgets it.
pub fn at_commit(what: &str, undo: &mut Undo, work: impl FnOnce() + Send + 'static) {
    // Committing drops the undo steps without running them.
    struct Later<F: FnOnce()>(Option<F>);
    impl<F: FnOnce()> Drop for Later<F> {
        fn drop(&mut self) {
            if let Some(work) = self.0.take() {
                work();
            }
        }
    }
    impl<F: FnOnce()> Later<F> {
        fn forget(mut self) {
            self.0 = None;
        }
    }
    let later = Later(Some(work));
    undo.push(what, move || {
        later.forget();
        Ok(())
    });
}

/// Removes a file when nothing can be undone any more.
pub fn remove_at_commit(path: &Path, undo: &mut Undo) {
    let path = path.to_owned();
    at_commit("removal", undo, move || {
        if let Err(error) = gone(fs::remove_file(&path)) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    });
}

#[cfg(test)]
#[path = "tests/place.rs"]
mod tests;
