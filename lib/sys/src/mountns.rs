//! A mount namespace of one's own, and files that appear in it under other names.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Gives the calling program a mount namespace of its own: what it mounts from here on nobody else sees, while what
/// the host unmounts goes away here too (so that this namespace keeps no device or network namespace in use).
///
/// For a program with one thread only: a thread that shares its root and working directory with others gets `EINVAL`.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub fn enter_private() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    Ok(())
}

/// Mounts an empty tmpfs of at most `bytes` over `target`, for its owner alone.
///
/// # Errors
/// What mount(2) said.
pub fn empty_tmpfs(target: &Path, bytes: u64) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(format!("mode=0700,size={bytes}").as_str()))?;
    Ok(())
}

/// A file, device or directory taken out of the mount tree, to be attached elsewhere: a bind mount in two halves, so
/// that its source may be out of sight by the time it is attached.
#[derive(Debug)]
pub struct Tree(OwnedFd);

impl Tree {
    /// What is at `path`, symbolic links followed.
    ///
    /// # Errors
    /// What open_tree(2) said: `EPERM` without CAP_SYS_ADMIN.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        // SAFETY: a NUL-terminated path that outlives the call and two integers; returns a new descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        let raw = Errno::result(raw)?;
        // SAFETY: the kernel has just returned this descriptor to us, nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(raw as i32) }))
    }

    /// Mounts it on `target`, which must exist and be a directory if and only if this is one.
    ///
    /// # Errors
    /// What move_mount(2) said.
    pub fn attach(self, target: &Path) -> io::Result<()> {
        let target = CString::new(target.as_os_str().as_bytes())?;
        // SAFETY: two descriptors or AT_FDCWD, two NUL-terminated strings that outlive the call, a flag word.
        let done = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        Errno::result(done)?;
        Ok(())
    }
}
