//! Listening Unix sockets: private, never over another's, gone when their owner goes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// The bytes that a socket's path may have: what `struct sockaddr_un` has room for, less the NUL at the end.
pub const LONGEST_PATH: usize = 107;

/// How many may wait to be accepted.
const BACKLOG: i32 = 64;

/// A listening socket and its name. The name goes with the value, if it is still this socket's.
#[derive(Debug)]
pub struct Listener {
    /// The socket, which does not block.
    pub socket: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Listener {
    /// Listens at `path`, for this user only. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// `AddrInUse` when somebody listens there; `AlreadyExists` when something is there that is no socket; otherwise what
    /// the kernel said.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Two servers may find the same stale socket: one at a time.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let _one = Flock::lock(File::open(parent)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        clear_stale(path)?;
        let socket = bind_private(path)?;
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { socket, path: path.to_owned(), inode: (meta.dev(), meta.ino()) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Connects to a socket. A listener that accepts nobody any more, because its process was stopped, say, is waited for at
/// most so long.
///
/// # Errors
/// `TimedOut` when as many as it lets wait were waiting all the time; otherwise what the kernel said.
pub fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let deadline = Instant::now() + limit;
    loop {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        match nix::sys::socket::connect(fd.as_raw_fd(), &address) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            // The kernel tells nobody when there is room again.
            Err(Errno::EAGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
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
fn clear_stale(path: &Path) -> io::Result<()> {
    if !is_stale(path)? {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether there is a socket at `path` that nobody listens on any more; `false` when there is nothing.
///
/// # Errors
/// `AddrInUse` when somebody listens there; `AlreadyExists` when something is there that is no socket.
pub fn is_stale(path: &Path) -> io::Result<bool> {
    if !is_socket(path)? {
        return Ok(false);
    }
    match connect(path, Duration::ZERO) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Ok(_) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

/// Whether there is a socket at `path`.
///
/// # Errors
/// `AlreadyExists` when there is something else.
pub fn is_socket(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(meta) if meta.file_type().is_socket() => Ok(true),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}
