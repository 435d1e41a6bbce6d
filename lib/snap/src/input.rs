//! Where memory is read from while it is packed: a file, a pipe, another process, a snapshot.

use std::fs::File;
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::chain::Chain;
use crate::{Error, directory};

/// How long a pipe is waited for between two looks at whether the work is still wanted, in milliseconds.
const PATIENCE: u16 = 250;
/// Bytes that the kernel may keep in a pipe for us, where it lets us.
const PIPE: i32 = 1 << 20;

/// What is packed.
#[derive(Debug)]
pub enum Raw {
    /// A raw memory file, as a VMM writes it.
    File(PathBuf),
    /// All of memory, as it comes: it is read once, to its end.
    Pipe(OwnedFd),
    /// Another process's memory.
    Process(Regions),
}

impl From<PathBuf> for Raw {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

/// Regions of a process's address space that, one after the other, are the memory. Nobody may write to it meanwhile: the
/// VM is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regions {
    /// The process.
    pub pid: i32,
    /// Address and bytes of each.
    pub regions: Vec<(u64, u64)>,
}

impl Regions {
    fn size(&self) -> Result<u64, Error> {
        let wrong = |what: &str| Error::field("raw", format!("{what} in {:?}", self.regions));
        let ends =
            self.regions.iter().try_for_each(|(address, length)| address.checked_add(*length).map(|_| ()));
        ends.ok_or_else(|| wrong("a region ends past the address space"))?;
        self.regions
            .iter()
            .try_fold(0_u64, |all, (_, length)| all.checked_add(*length))
            .ok_or_else(|| wrong("too many bytes"))
    }

    /// The parts of the regions that `start..start + length` of memory is made of.
    fn parts(&self, start: u64, length: u64) -> Vec<RemoteIoVec> {
        let (mut at, end) = (0, start + length);
        let mut parts = Vec::new();
        for (address, bytes) in &self.regions {
            let (from, to) = (start.max(at), end.min(at + bytes));
            if from < to {
                parts.push(RemoteIoVec { base: (address + (from - at)) as usize, len: (to - from) as usize });
            }
            at += bytes;
        }
        parts
    }
}

/// [`Raw`], opened.
#[derive(Debug)]
pub enum Input<'a> {
    /// Its data and its holes are known.
    File {
        /// Open for reading.
        file: File,
        /// Its path.
        path: &'a Path,
        /// Bytes.
        size: u64,
    },
    /// What comes next, and nothing else, can be read.
    Pipe {
        /// Its reading end.
        pipe: File,
        /// Bytes that it must have, where that is known.
        wanted: Option<u64>,
    },
    /// Read while the process is there.
    Process {
        /// Where its memory is.
        regions: &'a Regions,
        /// Who it is: a pid alone may come to name another.
        process: sys::process::Process,
        /// Bytes.
        size: u64,
    },
    /// A memory image that is read again.
    Chain(&'a Chain),
}

impl<'a> Input<'a> {
    /// Opens it. A pipe must have so many bytes as are wanted; where nothing is known, as many as come.
    ///
    /// # Errors
    /// What opening the file said; `invalid` for what is no regular file, `not_found` when the process is gone.
    pub fn open(raw: &'a Raw, wanted: Option<u64>) -> Result<Self, Error> {
        match raw {
            Raw::File(path) => {
                let file = File::open(path).map_err(Error::io("open", path))?;
                let size = directory::regular_length(&file, path)?;
                Ok(Self::File { file, path, size })
            }
            Raw::Pipe(pipe) => {
                let pipe = pipe.try_clone().map_err(Error::io("open", "the pipe"))?;
                // Fewer turns between who writes and who reads; without it, it is only slower.
                let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
                Ok(Self::Pipe { pipe: pipe.into(), wanted })
            }
            Raw::Process(regions) => {
                let size = regions.size()?;
                let process = sys::process::Process::of_pid(regions.pid).map_err(|error| Error::Process {
                    pid: regions.pid,
                    what: "is not there".into(),
                    source: error,
                })?;
                Ok(Self::Process { regions, process, size })
            }
        }
    }

    /// Bytes of memory; of a pipe that is known when it has ended.
    pub fn size(&self) -> Option<u64> {
        match self {
            Self::File { size, .. } | Self::Process { size, .. } => Some(*size),
            Self::Chain(chain) => Some(chain.header.size),
            Self::Pipe { .. } => None,
        }
    }

    /// Reads memory from `start` on. Not from a pipe.
    ///
    /// # Errors
    /// What reading said.
    pub fn read(&self, start: u64, buffer: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::File { file, path, .. } => {
                file.read_exact_at(buffer, start).map_err(Error::io("read", path))
            }
            Self::Chain(chain) => chain.read(start, buffer),
            Self::Process { regions, .. } => read_process(regions, start, buffer),
            Self::Pipe { .. } => unreachable!("a pipe is read in order"),
        }
    }

    /// Whether all that was read is the memory that was asked for: a pid may have come to name another process.
    ///
    /// # Errors
    /// `not_found` when the process ended meanwhile.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Process { process, .. } if !process.is_alive() => Err(gone(process.pid)),
            _ => Ok(()),
        }
    }
}

fn gone(pid: i32) -> Error {
    Error::Process { pid, what: "ended while its memory was read".into(), source: Errno::ESRCH.into() }
}

fn read_process(regions: &Regions, start: u64, buffer: &mut [u8]) -> Result<(), Error> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = &mut buffer[done..];
        let parts = regions.parts(start + done as u64, rest.len() as u64);
        // Nowhere near the kernel's limit of 1024, but a list may be long.
        let parts = &parts[..parts.len().min(1024)];
        match process_vm_readv(Pid::from_raw(regions.pid), &mut [IoSliceMut::new(rest)], parts) {
            Ok(0) => return Err(unreadable(regions.pid, parts[0].base, Errno::EFAULT)),
            Ok(read) => done += read,
            Err(Errno::ESRCH) => return Err(gone(regions.pid)),
            Err(errno) => return Err(unreadable(regions.pid, parts[0].base, errno)),
        }
    }
    Ok(())
}

fn unreadable(pid: i32, address: usize, errno: Errno) -> Error {
    let what = match errno {
        Errno::EFAULT => format!("has no readable memory at {address:#x}"),
        _ => format!("does not let its memory be read (at {address:#x})"),
    };
    Error::Process { pid, what, source: errno.into() }
}

/// Reads from a pipe until the buffer is full or the pipe ends. Returns how much there was.
///
/// # Errors
/// What reading said; `timeout` when interrupted.
pub fn read_pipe(mut pipe: &File, buffer: &mut [u8]) -> Result<usize, wire::Error> {
    let failed = |error: io::Error| Error::io("read", "the pipe")(error);
    let mut filled = 0;
    while filled < buffer.len() {
        // Signals are blocked: they do not end a read, so none is begun that would wait.
        let mut fds = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(PATIENCE)) {
            Ok(0) | Err(Errno::EINTR) => {
                wire::check_interrupt()?;
                continue;
            }
            Ok(_) => {}
            Err(errno) => return Err(failed(errno.into()).into()),
        }
        match pipe.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(failed(error).into()),
        }
    }
    Ok(filled)
}

#[cfg(test)]
#[path = "tests/input.rs"]
mod tests;
