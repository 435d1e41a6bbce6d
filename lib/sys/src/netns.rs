//! Network namespaces, each entered by a thread that is thrown away: a namespace belongs to a thread, and a thread
//! that is gone cannot be left in the wrong one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: FsType = FsType(0x6e73_6673);

/// Runs `work` on a thread of its own and waits for it: what it does to its namespaces ends with it.
///
/// # Panics
/// When `work` does.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Puts the calling thread into a new, empty network namespace. It lives until the thread ends, unless [`pin`]ned.
///
/// # Errors
/// What unshare said: EPERM without CAP_SYS_ADMIN, ENOSPC past `user.max_net_namespaces`.
pub fn unshare_net() -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWNET)?)
}

/// Puts the calling thread into the network namespace that `file` is.
///
/// # Errors
/// What setns said: EINVAL when `file` is not a network namespace.
pub fn enter(file: &impl AsFd) -> io::Result<()> {
    Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?)
}

/// The calling thread's network namespace.
///
/// # Errors
/// What opening it under /proc said.
pub fn current() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

/// Mounts the calling thread's network namespace on `path`, an existing file, as `ip netns` does: there it outlives
/// the thread.
///
/// # Errors
/// What mount said.
pub fn pin(path: &Path) -> io::Result<()> {
    Ok(mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Takes a namespace off `path`; the file that it covered is there again. `false` when none was mounted.
///
/// # Errors
/// What umount said.
pub fn unpin(path: &Path) -> io::Result<bool> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) => Ok(true),
        // EINVAL: not a mount point.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a namespace is mounted on `path`.
///
/// # Errors
/// What statfs said.
pub fn is_pinned(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == NSFS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn inode() -> u64 {
        current().unwrap().metadata().unwrap().ino()
    }

    #[test]
    fn what_a_thread_does_to_its_namespace_ends_with_it() {
        let before = inode();
        let inside = on_own_thread(|| unshare_net().map(|()| inode()));
        match inside {
            Ok(inside) => assert_ne!(inside, before),
            Err(error) => {
                wrenn_tests::skip::here(format!("making a network namespace needs CAP_SYS_ADMIN: {error}"));
            }
        }
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_plain_file_is_not_a_pinned_namespace() {
        assert!(!is_pinned(Path::new("/proc/self/status")).unwrap());
        assert!(is_pinned(Path::new("/proc/thread-self/ns/net")).unwrap());
    }
}
