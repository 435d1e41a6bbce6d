//! Unix sockets of the server's own: private, never over another's, gone when it goes.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use sys::listener::LONGEST_PATH;
use sys::process::Process;

use crate::Error;
use crate::config::Paths;

/// What accept(2) says when the host, or this process, is short of something.
const SHORTAGES: [Errno; 4] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::ENOBUFS];

/// How long to leave it at that.
const SHORT: Duration = Duration::from_millis(10);

/// A socket that listens. The name is the guardian's, and goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    /// It does not block.
    pub socket: UnixListener,
    path: PathBuf,
}

/// Refuses a path that does not fit a socket's address. A VMM could not connect to it either.
pub(crate) fn check(field: &'static str, path: &Path) -> Result<(), Error> {
    match path.as_os_str().len() {
        ..=LONGEST_PATH => Ok(()),
        length => Err(Error::PathTooLong { field, path: path.to_owned(), length }),
    }
}

/// Listens at `path`, for this user only. A socket that nobody listens on any more is replaced. The name goes with the value.
pub(crate) fn bind(path: &Path) -> Result<sys::listener::Listener, Error> {
    sys::listener::Listener::bind(path).map_err(taken("listen on", path))
}

impl Listener {
    /// One that the guardian has made.
    pub fn inherited(fd: OwnedFd, path: &Path) -> Self {
        Self { socket: fd.into(), path: path.to_owned() }
    }

    /// The next connection. `None` when there is none.
    pub fn accept(&self) -> Result<Option<UnixStream>, Error> {
        accept(&self.socket, &self.path)
    }
}

/// The next connection, which does not block. `None` when there is none.
pub(crate) fn accept(listener: &UnixListener, path: &Path) -> Result<Option<UnixStream>, Error> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(true).map_err(Error::io("accept on", path))?;
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
        // Out of descriptors or memory: whoever connects waits, and nobody else is to suffer for it.
        Err(error) if error.raw_os_error().is_some_and(|raw| SHORTAGES.contains(&Errno::from_raw(raw))) => {
            std::thread::sleep(SHORT);
            Ok(None)
        }
        Err(error) => Err(Error::io("accept on", path)(error)),
    }
}

/// What an error of `sys::listener` means here.
fn taken<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |error| match error.kind() {
        io::ErrorKind::AddrInUse => Error::InUse { path: path.to_owned() },
        io::ErrorKind::AlreadyExists => Error::NotASocket { path: path.to_owned() },
        _ => Error::io(what, path)(error),
    }
}

/// The VMMs that have handed themselves over to a service which ends before it has heard of it: those that have sent a
/// descriptor.
pub(crate) fn unheard(listener: &UnixListener) -> Vec<Process> {
    // Nobody else is to get in: who does is refused from here on, and those who wait still come out.
    let _ = nix::sys::socket::shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Read);
    let waiting = std::iter::from_fn(|| Some(listener.accept().ok()?.0));
    let peers = waiting.filter_map(|stream| {
        stream.set_nonblocking(true).ok()?;
        // What is said from here on is refused, and what was said still comes out.
        let _ = stream.shutdown(Shutdown::Read);
        sys::fdpass::peer(&stream).ok().filter(|peer| is_trusted(*peer))?;
        let process = sys::fdpass::peer_process(&stream).ok()??;
        let mut buffer = [0; 4096];
        let said = || sys::fdpass::receive(&stream, &mut buffer).ok().filter(|said| said.bytes > 0);
        let handed_over = std::iter::from_fn(said).any(|said| !said.fds.is_empty());
        handed_over.then_some(process)
    });
    peers.collect()
}

/// Whether there is a socket. Something else in its place is an error.
pub(crate) fn is_socket(path: &Path) -> Result<bool, Error> {
    sys::listener::is_socket(path).map_err(taken("look at", path))
}

/// Removes a name. Gone already is fine.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes the names of sockets that nobody listens on any more.
pub(crate) fn clear_up(paths: &Paths) {
    for path in [&paths.socket, &paths.control] {
        if sys::listener::is_stale(path).unwrap_or(false) {
            let _ = remove(path);
        }
    }
}

/// Refuses a name under which somebody listens, or that something else has.
pub(crate) fn check_unused(path: &Path) -> Result<(), Error> {
    sys::listener::is_stale(path).map(drop).map_err(taken("look at", path))
}

/// Whether the other end is this user, or root.
pub(crate) fn is_trusted(peer: sys::fdpass::Peer) -> bool {
    peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_in_use_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(Error::InUse { .. })));
        // As after SIGKILL: the name stays, nobody listens.
        let stale = dir.path().join("stale");
        fs::hard_link(&path, &stale).unwrap();
        drop(first);
        let second = bind(&stale).unwrap();
        UnixStream::connect(&stale).unwrap();
        drop(second);
        assert!(!stale.exists());
    }

    #[test]
    fn a_listener_leaves_the_name_of_its_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = bind(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(Error::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_listener_that_accepts_nobody_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = sys::listener::Listener::bind(&path).unwrap();
        let connect = || sys::listener::connect(&path, std::time::Duration::from_millis(20));
        let mut waiting = Vec::new();
        let refused = loop {
            match connect() {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10_000, "it lets everybody wait");
        };
        assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
        listener.socket.accept().unwrap();
        connect().unwrap();
        let taken = sys::listener::Listener::bind(&path).unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    }
}
