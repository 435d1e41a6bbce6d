//! A system call whose end nobody has to wait for, made by a process of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Sends `bytes` on `socket` from a process of its own, and does not wait for it: for a message that the kernel has acted
/// upon long before it lets the sender go. Whether it was sent must be seen by its effect.
///
/// The process has nothing of the caller's but the socket, is nobody's child, and ends with the call.
///
/// # Errors
/// What fork said.
pub fn send(socket: &impl AsFd, bytes: &[u8]) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the child calls nothing but `orphan`, which only makes system calls that are async-signal-safe.
    match Errno::result(unsafe { libc::fork() })? {
        0 => orphan(fd, bytes),
        child => match waitpid(Pid::from_raw(child), None) {
            // ECHILD: this program has SIGCHLD ignored, and nobody is told.
            Ok(WaitStatus::Exited(_, 0)) | Err(Errno::ECHILD) => Ok(()),
            Ok(_) => Err(Errno::EAGAIN.into()),
            Err(errno) => Err(errno.into()),
        },
    }
}

unsafe extern "C" {
    /// The environment, where /proc/PID/environ shows it to others.
    static environ: *const *mut libc::c_char;
}

/// In the child: leaves the work to a grandchild, which init will reap.
fn orphan(fd: i32, bytes: &[u8]) -> ! {
    // SAFETY: these system calls are async-signal-safe and read no memory but `bytes`, which is this process's own copy.
    // Descriptors are closed and the environment is wiped without their owners knowing, but no owner will ever run again
    // here: the process ends by _exit, which runs no destructor. `environ` is a list of C strings that ends with a null.
    unsafe {
        libc::chdir(c"/".as_ptr());
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
        if fd > 0 {
            libc::syscall(libc::SYS_close_range, 0, fd - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, fd + 1, libc::c_uint::MAX, 0);
        // Only now does the caller go on: what it closes or unlocks from here on is closed and unlocked.
        match libc::fork() {
            -1 => libc::_exit(1),
            0 => {}
            _ => libc::_exit(0),
        }
        libc::setsid();
        libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_bytes_arrive_from_a_process_that_has_nothing_else_of_ours() {
        assert_ne!(std::env::vars_os().count(), 0, "an environment to wipe");
        let (mut reader, mut writer) = UnixStream::pair().unwrap();
        // Full, so that the process has to wait and can be looked at.
        writer.set_nonblocking(true).unwrap();
        let mut filled = 0;
        while let Ok(count) = writer.write(&[b'.'; 4096]) {
            filled += count;
        }
        writer.set_nonblocking(false).unwrap();
        send(&writer, b"sent apart").unwrap();

        let socket = format!(
            "socket:[{}]",
            fs::metadata(format!("/proc/self/fd/{}", writer.as_raw_fd())).unwrap().ino()
        );
        let mut text = vec![0; filled];
        let other = loop {
            let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
            let mut others = processes.filter(|path| *path != fs::canonicalize("/proc/self").unwrap());
            let descriptors = |path: &std::path::PathBuf| -> Vec<_> {
                let entries = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
                entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
            };
            // It closes the others last, and then waits for us to read.
            if let Some(path) = others.find(|path| descriptors(path) == [std::path::Path::new(&socket)]) {
                break path;
            }
        };
        let environment = fs::read(other.join("environ")).unwrap();
        assert!(environment.iter().all(|byte| *byte == 0), "{}", String::from_utf8_lossy(&environment));
        reader.read_exact(&mut text).unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "sent apart");
    }
}
