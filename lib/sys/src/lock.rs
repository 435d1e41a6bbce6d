//! Advisory locks between programs: `flock` on a file that is never unlinked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// A held lock. It is released when dropped, or by the kernel when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Takes the exclusive lock on `path`, creating the file if needed, waiting at most `wait`.
///
/// # Errors
/// `TimedOut` when somebody else held it all the time; `Interrupted` when a signal asked this program to end
/// meanwhile; otherwise what opening or locking the file said.
pub fn exclusive(path: &Path, wait: Duration) -> io::Result<Lock> {
    acquire(path, wait, FlockArg::LockExclusiveNonblock)
}

/// As [`exclusive`], but together with others who take it so: who takes it alone is kept out.
///
/// # Errors
/// As [`exclusive`].
pub fn shared(path: &Path, wait: Duration) -> io::Result<Lock> {
    acquire(path, wait, FlockArg::LockSharedNonblock)
}

fn acquire(path: &Path, wait: Duration, how: FlockArg) -> io::Result<Lock> {
    let deadline = Instant::now() + wait;
    let mut file = open(path)?;
    let mut pause = Duration::from_millis(1);
    loop {
        // The kernel has no flock with a time limit, so what is left is to retry: 1 ms doubling to 50 ms.
        match Flock::lock(file, how) {
            Ok(held) => return Ok(Lock { _file: held }),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, errno)) => return Err(errno.into()),
        }
        if crate::signals::pending().is_some() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Takes the lock if nobody holds it. `None` means that somebody does.
///
/// # Errors
/// What opening or locking the file said.
pub fn try_exclusive(path: &Path) -> io::Result<Option<Lock>> {
    match Flock::lock(open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Some(Lock { _file: held })),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
