//! Files that appear under their name only when they are complete, and copies that keep holes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

/// How much is copied between two looks for a signal that asks to end.
const STEP: u64 = 64 << 20;

/// A file without a name (O_TMPFILE): a program that is killed leaves nothing. Where the file system has no such files
/// it has a name beginning with a dot, removed unless published.
#[derive(Debug)]
pub(crate) struct NewFile {
    /// Open for reading and writing.
    pub file: File,
    temporary: Option<PathBuf>,
}

impl NewFile {
    /// A new empty file in `dir`, which must exist. `mode` is subject to the umask.
    pub fn in_dir(dir: &Path, mode: u32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(mode);
        match options.clone().custom_flags(OFlag::O_TMPFILE.bits()).open(dir) {
            Ok(file) => return Ok(Self { file, temporary: None }),
            Err(error)
                if matches!(error.raw_os_error(), Some(libc_errno)
                    if [Errno::EOPNOTSUPP, Errno::EISDIR, Errno::EINVAL].map(|errno| errno as i32).contains(&libc_errno)) =>
                {}
            Err(error) => return Err(error),
        }
        let mut attempt = 0;
        loop {
            let path = dir.join(format!(".rootfs-{}-{attempt}.tmp", std::process::id()));
            match options.clone().create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, temporary: Some(path) }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives it its name. Never takes the place of another file.
    pub fn publish(self, path: &Path) -> io::Result<()> {
        let source = match &self.temporary {
            Some(path) => path.clone(),
            None => format!("/proc/self/fd/{}", self.file.as_raw_fd()).into(),
        };
        linkat(AT_FDCWD, &source, AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(())
    }

    /// As [`NewFile::publish`], in place of what has the name now.
    pub fn replace(mut self, path: &Path) -> io::Result<()> {
        let temporary = match self.temporary.take() {
            Some(path) => path,
            None => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let temporary = path.with_file_name(format!(".{name}-{}.tmp", std::process::id()));
                let _ = std::fs::remove_file(&temporary);
                let source = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(AT_FDCWD, Path::new(&source), AT_FDCWD, &temporary, AtFlags::AT_SYMLINK_FOLLOW)?;
                temporary
            }
        };
        std::fs::rename(&temporary, path).inspect_err(|_| drop(std::fs::remove_file(&temporary)))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes `to`, which is empty, the same as `from`: sharing the data where the file system can, else copying it and
/// leaving the holes. A signal that asks to end interrupts a copy.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    match sys::sparse::clone_file(from, to) {
        Ok(()) => return Ok(()),
        Err(error) if cannot(&error) => {}
        Err(error) => return Err(error),
    }
    to.set_len(from.metadata()?.len())?;
    for range in sys::sparse::data(from) {
        let range = range?;
        let mut at = range.start;
        while at < range.end {
            if sys::signals::pending().is_some() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = range.end.min(at + STEP);
            copy_range(from, to, at..end)?;
            at = end;
        }
    }
    Ok(())
}

/// Copies a range to the same place, inside the kernel where that can be done (`io::copy` sees to it).
fn copy_range(mut from: &File, mut to: &File, range: Range<u64>) -> io::Result<()> {
    from.seek(SeekFrom::Start(range.start))?;
    to.seek(SeekFrom::Start(range.start))?;
    let length = range.end - range.start;
    let copied = io::copy(&mut from.take(length), &mut to)?;
    // A file that got shorter meanwhile.
    if copied < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Whether it is a thing this file system, or this pair of them, cannot do.
fn cannot(error: &io::Error) -> bool {
    const CANNOT: [Errno; 5] = [Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::EINVAL, Errno::EXDEV, Errno::ENOSYS];
    error.raw_os_error().is_some_and(|errno| CANNOT.contains(&Errno::from_raw(errno)))
}
