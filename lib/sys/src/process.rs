//! Processes by name: a pid with its start time and boot id, so that a recycled pid is never mistaken for ours.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// How long a killed process may take to end. It runs in the kernel alone by then, yet must get its turn: with fifty VMs
/// on one emulated processor more than ten seconds.
const KILLED: Duration = Duration::from_secs(60);

/// One process, for as long as the host is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks between boot and the start of the process.
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id of the boot it belongs to.
    pub boot_id: String,
}

/// This boot's id.
///
/// # Errors
/// What reading /proc said.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// `NotFound` when there is none or it is a zombie.
    pub fn of_pid(pid: i32) -> io::Result<Self> {
        let (alive, start_time) = stat(pid)?;
        if !alive {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { pid, start_time, boot_id: boot_id()? })
    }

    /// This very process.
    ///
    /// # Errors
    /// What reading /proc said.
    pub fn current() -> io::Result<Self> {
        Self::of_pid(nix::unistd::getpid().as_raw())
    }

    /// Whether it still runs. A zombie counts as gone.
    pub fn is_alive(&self) -> bool {
        boot_id().is_ok_and(|id| id == self.boot_id)
            && stat(self.pid).is_ok_and(|(alive, start)| alive && start == self.start_time)
    }

    /// A descriptor of the process. `None` when it is gone.
    ///
    /// # Errors
    /// What pidfd_open said, other than that there is no such process.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        match Errno::result(raw) {
            Ok(raw) => {
                // SAFETY: the kernel has just returned this descriptor to us, nobody else owns it.
                let fd = unsafe { OwnedFd::from_raw_fd(raw as i32) };
                // Checked after opening: the descriptor now holds on to whoever this pid is.
                Ok(self.is_alive().then_some(fd))
            }
            Err(Errno::ESRCH | Errno::EINVAL) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal. `false` means that the process was gone already.
    ///
    /// # Errors
    /// What pidfd_send_signal said.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(fd) = self.pidfd()? else { return Ok(false) };
        // SAFETY: a valid pidfd, a signal number, no siginfo, no flags: nothing is written by the kernel.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(done) {
            Ok(_) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the process has ended, at most `limit`. `true` means that it has.
    ///
    /// # Errors
    /// What pidfd_open or poll said.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        match self.pidfd()? {
            None => Ok(true),
            Some(fd) => readable(&fd, limit),
        }
    }

    /// Ends the process: SIGTERM, then SIGKILL once `grace` is over. Gone already is success.
    ///
    /// # Errors
    /// `TimedOut` when it is still there a minute after SIGKILL; otherwise what the kernel said.
    pub fn end(&self, grace: Duration) -> io::Result<()> {
        if !grace.is_zero() {
            self.signal(Signal::SIGTERM)?;
            if self.wait(grace)? {
                return Ok(());
            }
        }
        self.signal(Signal::SIGKILL)?;
        if self.wait(KILLED)? { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}

/// Waits until `fd` is readable, at most `limit`.
///
/// # Errors
/// What poll said.
pub fn readable(fd: &impl AsFd, limit: Duration) -> io::Result<bool> {
    Ok(any_readable_within(&[fd.as_fd()], Some(limit))?[0])
}

/// Waits, for ever, until one of these is readable or at its end. Says of each whether it is.
///
/// # Errors
/// What poll said.
pub fn any_readable(fds: &[BorrowedFd]) -> io::Result<Vec<bool>> {
    any_readable_within(fds, None)
}

/// The same, at most for so long.
///
/// # Errors
/// What poll said.
pub fn any_readable_within(fds: &[BorrowedFd], limit: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut fds: Vec<PollFd> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // Up to the next millisecond: none is left when it is over.
        let left = left.map(|left| left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            // Longer than one poll can wait.
            Ok(0) if left.is_none_or(|left| left > 0) => {}
            Ok(_) => return Ok(fds.iter().map(|fd| fd.any() == Some(true)).collect()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether a pid is alive, and its start time.
fn stat(pid: i32) -> io::Result<(bool, u64)> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => io::ErrorKind::NotFound.into(),
            _ => error,
        })?;
    parse_stat(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The command name, field 2, may hold spaces and parentheses: the fields after it start at the last `)`.
///
/// A process is a zombie (field 3) as soon as its first thread has ended. While field 20 counts others they still run,
/// and hold everything the process has open: it is gone only when they are.
fn parse_stat(text: &str) -> Option<(bool, u64)> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    let ended = state == 'X' || (state == 'Z' && threads <= 1);
    Some((!ended, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let text = "12 (a) b (c)) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1000 1";
        assert_eq!(parse_stat(text), Some((true, 98765)));
    }

    #[test]
    fn a_process_whose_first_thread_alone_has_ended_is_alive() {
        let with = |state: &str, threads: u32| {
            parse_stat(&format!(
                "12 (vmm) {state} 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 {threads} 0 98765 1000 1"
            ))
        };
        assert_eq!(with("Z", 3), Some((true, 98765)));
        assert_eq!(with("Z", 1), Some((false, 98765)));
        assert_eq!(with("X", 0), Some((false, 98765)));
    }

    #[test]
    fn a_zombie_counts_as_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of_pid(child.id() as i32).unwrap();
        assert!(process.is_alive());
        process.end(Duration::ZERO).unwrap();
        assert!(!process.is_alive(), "killed, not yet reaped");
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(!process.signal(Signal::SIGKILL).unwrap());
    }

    #[test]
    fn a_wait_for_several_says_which_of_them_it_was() {
        let ((one, mut write), (two, writer)) = (io::pipe().unwrap(), io::pipe().unwrap());
        io::Write::write_all(&mut write, b"x").unwrap();
        assert_eq!(any_readable(&[one.as_fd(), two.as_fd()]).unwrap(), [true, false]);
        drop(writer);
        assert_eq!(any_readable(&[one.as_fd(), two.as_fd()]).unwrap(), [true, true], "and one at its end");
    }

    #[test]
    fn another_start_time_or_boot_is_another_process() {
        let me = Process::current().unwrap();
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me.clone() }.is_alive());
        assert!(!Process { boot_id: "another".into(), ..me }.is_alive());
    }
}
