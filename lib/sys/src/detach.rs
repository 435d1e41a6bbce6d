//! Programs that outlive their caller: re-executed, in a session of their own, with nothing of the caller's but
//! the descriptors given to them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;

/// Gives `command` /dev/null as 0 to 2.
pub fn null_stdio(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

/// Starts `command` detached: own session, 0 to 2 as set on the command (see [`null_stdio`]), every other descriptor
/// closed save `keep`, which arrive as descriptors 3, 4, … in order. Signals start unblocked.
///
/// The child is the caller's until the caller exits; nobody needs to wait for it.
///
/// # Errors
/// What fork or exec said.
pub fn spawn(mut command: Command, keep: Vec<OwnedFd>) -> io::Result<Child> {
    // Above every number they will be moved to, so that no move overwrites one still to be moved.
    let floor = 3 + keep.len() as i32;
    // The standard library reports a failed exec through a pipe of its own: with these numbers taken here, that pipe
    // is not one of those that the child overwrites.
    let mut taken = Vec::new();
    if let Some(first) = keep.first() {
        loop {
            let fd = duplicate_above(first, 3)?;
            if fd.as_raw_fd() >= floor {
                break;
            }
            taken.push(fd);
        }
    }
    let keep = keep.iter().map(|fd| duplicate_above(fd, floor)).collect::<io::Result<Vec<_>>>()?;
    // SAFETY: the closure runs between fork and exec and only makes system calls that are async-signal-safe; it
    // allocates nothing (`keep` was made before).
    unsafe {
        command.pre_exec(move || {
            if libc::setsid() < 0 {
                return Err(io::Error::last_os_error());
            }
            // Inherited otherwise: SIGTERM would not end a program whose caller reads its signals (see `signals`).
            let mut none: libc::sigset_t = std::mem::zeroed();
            if libc::sigemptyset(&mut none) < 0
                || libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) < 0
            {
                return Err(io::Error::last_os_error());
            }
            let mut next = 3;
            for fd in &keep {
                // dup2 clears close-on-exec on the new number.
                if libc::dup2(fd.as_raw_fd(), next) < 0 {
                    return Err(io::Error::last_os_error());
                }
                next += 1;
            }
            // Marked rather than closed: the standard library reports a failed exec through one of them.
            let marked =
                libc::syscall(libc::SYS_close_range, next, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
            if marked < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn()
}

fn duplicate_above(fd: &OwnedFd, floor: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: F_DUPFD_CLOEXEC takes an open descriptor and a number, and returns a new descriptor or -1.
    let raw = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, floor) })?;
    // SAFETY: the kernel has just returned this descriptor to us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Takes over the descriptors that [`spawn`] passed on: numbers 3 to 3 + `count`.
///
/// # Errors
/// `EBADF` when one is not open, as when the program was started by hand.
pub fn inherited(count: usize) -> io::Result<Vec<OwnedFd>> {
    use std::os::fd::FromRawFd;
    (3..3 + count as i32)
        .map(|raw| {
            // SAFETY: F_SETFD on a number changes that descriptor's flag or fails with EBADF.
            Errno::result(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
            // SAFETY: the descriptor is open (checked above), and by `spawn`'s contract this program owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(raw) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_program_that_cannot_be_executed_is_reported() {
        let (_reader, writer) = io::pipe().unwrap();
        let error = spawn(Command::new("/nonexistent/program"), vec![writer.into()]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_detached_program_can_be_ended_by_the_signals_that_its_caller_blocks() {
        crate::signals::block().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut child = spawn(command, vec![]).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let blocked = status.lines().find(|line| line.starts_with("SigBlk:")).unwrap().to_owned();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(blocked, "SigBlk:\t0000000000000000");
    }

    #[test]
    fn a_detached_program_has_nothing_of_its_caller_but_what_it_was_given() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut leak_reader, leak_writer) = io::pipe().unwrap();
        // Without close-on-exec this end would be inherited, and the reader would never see the end of the pipe.
        nix::fcntl::fcntl(&leak_writer, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "ls /proc/self/fd >&3; readlink /proc/self/fd/0 >&3; exec 3>&-; exec sleep 60"]);
        null_stdio(&mut command);
        let mut child = spawn(command, vec![writer.into()]).unwrap();
        drop(leak_writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let mut rest = Vec::new();
        leak_reader.read_to_end(&mut rest).unwrap();
        let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(child.id() as i32))).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(session.as_raw(), child.id() as i32);
        // 0 to 3, and the directory that ls itself has open.
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, ["0", "1", "2", "3", "4", "/dev/null"]);
    }
}
