//! A VMM's files under `<run>/<id>`: its socket, its log, and what its dirty log is relative to.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use wire::{Host, Id, Undo};

use crate::Error;
use crate::api::Api;

/// The directory's name in the VMM's working directory, so that a socket's path is short whatever the host's is.
pub(crate) const RUN: &str = "run";

/// Where they are.
#[derive(Debug, Clone)]
pub(crate) struct RunFiles {
    dir: PathBuf,
}

/// The log that a VMM writes and its guest's console goes to.
#[derive(Debug)]
pub(crate) struct Console {
    file: File,
    path: PathBuf,
    /// How long it was before this VMM.
    start: u64,
}

/// What a VM's memory has changed from, page by page where its VMM has a dirty log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// From the zeros that memory is before the boot.
    Boot,
    /// From the snapshot in this directory: the last one dumped, or the one loaded.
    Snapshot(PathBuf),
}

impl Base {
    /// What stands in the file for [`Base::Boot`]. A directory begins with a slash.
    const BOOT: &'static str = "boot";
}

impl RunFiles {
    /// The API socket's name.
    pub const SOCKET: &'static str = "api.sock";
    /// The name of the socket that Cloud Hypervisor offers its guest's console on.
    pub const CONSOLE_SOCKET: &'static str = "console.sock";
    /// Cloud Hypervisor locks a file beside its socket and leaves it.
    const SOCKET_LOCK: &'static str = "api.sock.lock";

    pub fn of(host: &Host, id: &Id) -> Self {
        Self { dir: host.run_dir(id) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join(Self::SOCKET)
    }

    pub fn console(&self) -> PathBuf {
        self.dir.join("vm.log")
    }

    /// Holds the [`Base`] of the VMM's dirty log, while that is known for sure: it is absent
    /// from just before a dump until that dump is complete, so that no failure in between can be taken for a base.
    fn base(&self) -> PathBuf {
        self.dir.join("vm.base")
    }

    /// Whether a process answers on the socket.
    pub fn listener(&self) -> Option<i32> {
        Api::connect(&self.socket()).ok()?.peer_pid()
    }

    /// Refuses if a VMM of this sandbox answers; removes the sockets that one left.
    pub fn check_free(&self, id: &Id) -> Result<(), Error> {
        match self.listener() {
            Some(_) => Err(Error::Exists { id: id.to_string(), socket: self.socket() }),
            None => self.remove_sockets(),
        }
    }

    /// Opens the log, to be appended to.
    pub fn open_console(&self, undo: &mut Undo) -> Result<Console, Error> {
        let path = self.console();
        let existed = path.exists();
        let open = || {
            let file = File::options().append(true).read(true).create(true).mode(0o600).open(&path)?;
            let start = file.metadata()?.len();
            Ok(Console { file, path: path.clone(), start })
        };
        let console = open().map_err(Error::io("open", &path))?;
        if !existed {
            undo.push(format!("log {}", path.display()), move || {
                remove(&path).map_err(Error::io("remove", &path))?;
                Ok(())
            });
        }
        Ok(console)
    }

    /// What the dirty log is relative to, if it is known.
    pub fn read_base(&self) -> Option<Base> {
        let text = fs::read_to_string(self.base()).ok()?;
        Some(if text == Base::BOOT { Base::Boot } else { Base::Snapshot(text.into()) })
    }

    /// From here on the dirty log is relative to this.
    pub fn write_base(&self, base: &Base) -> Result<(), Error> {
        let text = match base {
            Base::Boot => Base::BOOT.as_bytes(),
            Base::Snapshot(dir) => dir.as_os_str().as_encoded_bytes(),
        };
        fs::write(self.base(), text).map_err(Error::io("write", self.base()))
    }

    /// From here on it is not known what the dirty log is relative to.
    pub fn forget_base(&self) -> Result<(), Error> {
        remove(&self.base()).map_err(Error::io("remove", self.base()))
    }

    pub fn remove_sockets(&self) -> Result<(), Error> {
        for name in [Self::SOCKET, Self::SOCKET_LOCK, Self::CONSOLE_SOCKET] {
            let path = self.dir.join(name);
            remove(&path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }

    /// Removes everything a VMM leaves, past failures, and the directory when nobody else has anything in it.
    pub fn remove_all(&self) -> Vec<Error> {
        let console = || remove(&self.console()).map_err(Error::io("remove", self.console()));
        [self.remove_sockets(), self.forget_base(), console(), self.remove_dir_if_empty()]
            .into_iter()
            .filter_map(Result::err)
            .collect()
    }

    pub fn remove_dir_if_empty(&self) -> Result<(), Error> {
        match fs::remove_dir(&self.dir) {
            Err(error)
                if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) =>
            {
                Err(Error::Io { what: "remove", path: self.dir.clone(), source: error })
            }
            _ => Ok(()),
        }
    }
}

impl Console {
    /// For a child's stdout or stderr.
    pub fn handle(&self) -> io::Result<Stdio> {
        Ok(self.file.try_clone()?.into())
    }

    /// The last lines written since this VMM was started, without control characters.
    pub fn tail(&self) -> Vec<String> {
        wire::last_lines(&self.path, self.start)
    }
}

/// Removes a file. Gone already is success.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
