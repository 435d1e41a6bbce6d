//! Unix sockets of the server's own: private, never over another's, gone when it goes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

use crate::Error;

/// What `struct sockaddr_un` has room for, less the NUL at the end.
const LONGEST: usize = 107;

/// How many may wait to be accepted.
const BACKLOG: i32 = 16;

/// A listening socket and its name. The name goes with the value, if it is still this socket's.
#[derive(Debug)]
pub(crate) struct Listener {
    pub socket: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

/// Refuses a path that does not fit a socket's address. A VMM could not connect to it either.
pub(crate) fn check(field: &'static str, path: &Path) -> Result<(), Error> {
    match path.as_os_str().len() {
        ..=LONGEST => Ok(()),
        length => Err(Error::PathTooLong { field, path: path.to_owned(), length }),
    }
}

impl Listener {
    /// Listens at `path`, for this user only. A socket that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::io("listen on", path)(source);
        // Two servers may find the same stale socket: one at a time.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = File::open(parent).map_err(failed)?;
        let _one = Flock::lock(parent, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
        clear_stale(path)?;
        let socket = bind_private(path).map_err(failed)?;
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self { socket, path: path.to_owned(), inode: (meta.dev(), meta.ino()) })
    }

    /// The next connection. `None` when there is none.
    pub fn accept(&self) -> Result<Option<UnixStream>, Error> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true).map_err(Error::io("accept on", &self.path))?;
                Ok(Some(stream))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::io("accept on", &self.path)(error)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The name takes the mode that the socket has before it is bound: there is no moment when others may connect.
    fchmod(&fd, Mode::from_bits_truncate(0o600))?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd.into())
}

/// Makes room at `path`, unless somebody listens there.
fn clear_stale(path: &Path) -> Result<(), Error> {
    if !is_socket(path)? {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => Err(Error::InUse { path: path.to_owned() }),
    }
}

/// Whether there is a socket. Something else in its place is an error.
pub(crate) fn is_socket(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("look at", path)(error)),
        Ok(meta) if meta.file_type().is_socket() => Ok(true),
        Ok(_) => Err(Error::NotASocket { path: path.to_owned() }),
    }
}

/// Removes a name. Gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Whether the other end is this user, or root.
pub(crate) fn is_trusted(peer: sys::fdpass::Peer) -> bool {
    peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::InUse { .. })));
        // As after SIGKILL: the name stays, nobody listens.
        let stale = dir.path().join("stale");
        fs::hard_link(&path, &stale).unwrap();
        drop(first);
        let second = Listener::bind(&stale).unwrap();
        UnixStream::connect(&stale).unwrap();
        drop(second);
        assert!(!stale.exists());
    }

    #[test]
    fn a_listener_leaves_the_name_of_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = Listener::bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(Error::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
