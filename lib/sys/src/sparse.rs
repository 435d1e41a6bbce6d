//! Files with holes: where their data is, making holes, sharing data instead of copying it.
//!
//! Copying a range inside the kernel needs no wrapper: `std::io::copy` between files uses `copy_file_range(2)`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

/// The first run of data at or after `offset`, as the file system reports it: in units of its blocks, and the whole
/// file where it does not know holes. `None` when there is only a hole up to the end.
///
/// Moves the file position.
///
/// # Errors
/// What `lseek(2)` said.
pub fn next_data(file: impl AsFd, offset: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |offset: u64, whence| {
        let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file.as_fd(), offset, whence).map(|at| at as u64)
    };
    let start = match seek(offset, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(Some(start..seek(start, Whence::SeekHole)?))
}

/// The runs of data of a file, in order.
///
/// # Errors
/// Each item: what `lseek(2)` said.
pub fn data(file: &File) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut next = Some(0);
    std::iter::from_fn(move || match next_data(file, next?) {
        Ok(Some(range)) => {
            next = Some(range.end);
            Some(Ok(range))
        }
        Ok(None) => None,
        Err(error) => {
            next = None;
            Some(Err(error))
        }
    })
}

/// Makes a hole: the range reads as zeros and takes no space. The file keeps its length.
///
/// # Errors
/// What `fallocate(2)` said; `EOPNOTSUPP` where the file system cannot.
pub fn punch(file: impl AsFd, range: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (start, length) = signed(&range)?;
    fallocate(file, flags, start, length).map_err(Into::into)
}

fn signed(range: &Range<u64>) -> io::Result<(i64, i64)> {
    let to = |value: u64| i64::try_from(value).map_err(|_| io::Error::from(Errno::EOVERFLOW));
    Ok((to(range.start)?, to(range.end - range.start)?))
}

/// Makes `to` share all data of `from` (FICLONE). They change independently afterwards.
///
/// # Errors
/// What `ioctl_ficlone(2)` said: `EOPNOTSUPP`, `ENOTTY`, `EINVAL` or `EXDEV` where it cannot be done.
pub fn clone_file(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    nix::ioctl_write_int!(ficlone, 0x94, 9);
    // SAFETY: both descriptors are borrowed and so stay open during the call; the ioctl takes the source's number as
    // its argument and no pointer.
    unsafe { ficlone(to.as_fd().as_raw_fd(), from.as_fd().as_raw_fd() as _) }?;
    Ok(())
}

/// Makes a part of `to`, from `at` on, share a range of `from` (FICLONERANGE); whole blocks of the file system.
///
/// # Errors
/// What `ioctl_ficlonerange(2)` said: `EOPNOTSUPP`, `ENOTTY`, `EINVAL` or `EXDEV` where it cannot be done.
pub fn clone_range(from: impl AsFd, range: Range<u64>, to: impl AsFd, at: u64) -> io::Result<()> {
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, libc::file_clone_range);
    let request = libc::file_clone_range {
        src_fd: from.as_fd().as_raw_fd().into(),
        src_offset: range.start,
        src_length: range.end - range.start,
        dest_offset: at,
    };
    // SAFETY: both descriptors are borrowed and so stay open during the call, as does `request`, which it reads.
    unsafe { ficlonerange(to.as_fd().as_raw_fd(), &request) }?;
    Ok(())
}
