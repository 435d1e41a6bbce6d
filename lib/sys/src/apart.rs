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

/// In the child: leaves the work to a grandchild, which init will reap.
fn orphan(fd: i32, bytes: &[u8]) -> ! {
    // SAFETY: these system calls are async-signal-safe and touch no memory but `bytes`, which is a copy of this process's
    // own. Descriptors are closed without their owners knowing, but no owner will ever run again here: the process ends
    // by _exit, which runs no destructor.
    unsafe {
        match libc::fork() {
            -1 => libc::_exit(1),
            0 => {}
            _ => libc::_exit(0),
        }
        libc::setsid();
        libc::chdir(c"/".as_ptr());
        if fd > 0 {
            libc::syscall(libc::SYS_close_range, 0, fd - 1, 0);
        }
        libc::syscall(libc::SYS_close_range, fd + 1, libc::c_uint::MAX, 0);
        libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0);
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_bytes_arrive_and_the_process_keeps_no_other_descriptor() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let (mut pipe, end) = io::pipe().unwrap();
        send(&writer, b"sent apart").unwrap();
        drop((writer, end));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "sent apart");
        // Would never end if the other process had kept its copy of the pipe's end.
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    }
}
