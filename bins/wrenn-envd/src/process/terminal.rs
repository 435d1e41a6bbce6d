//! Pseudo-terminals.

use std::{
    ffi::OsString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use rustix::{
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use crate::users::User;

/// Both ends of a new terminal.
pub struct Terminal {
    /// The agent's end.
    pub master: OwnedFd,
    /// The process's end.
    pub slave: OwnedFd,
    /// Where the process's end lies in /dev/pts.
    pub path: PathBuf,
}

/// Columns and rows.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub cols: u16,
    pub rows: u16,
}

impl Terminal {
    /// Opens a terminal of the given size that belongs to the user.
    ///
    /// # Errors
    /// As the kernel says; most often that /dev/pts is not mounted or full.
    pub fn open(size: Size, user: &User) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = PathBuf::from(OsString::from_vec(ptsname(&master, Vec::new())?.into_bytes()));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(user.uid), None)?;
        }
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        resize(master.as_fd(), size)?;
        Ok(Self { master, slave, path })
    }
}

/// Changes a terminal's size; its foreground processes get SIGWINCH.
///
/// # Errors
/// As the kernel says.
pub fn resize(master: BorrowedFd<'_>, size: Size) -> io::Result<()> {
    Ok(tcsetwinsize(master, Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 })?)
}
