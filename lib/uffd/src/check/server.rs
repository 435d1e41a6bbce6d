//! The server that is looked at.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use sys::process::Process;

use super::processes;
use crate::Error;

/// How long a server may take to end when it is asked to. It is nothing that is judged.
const GRACE: Duration = Duration::from_secs(2);

/// How much of a server's log goes into a result.
const LOG: u64 = 2000;

/// One server, in a session of its own. Ended with all its processes when this goes.
pub(crate) struct Server {
    child: Child,
    process: Process,
    log: PathBuf,
    /// Its processes that are known: the one that was started, and the one that listens.
    pub roots: Vec<i32>,
}

impl Server {
    /// Starts it. What it writes to stdout and stderr goes to `log`.
    pub fn start(words: &[String], log: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { doing: "start", path: (&words[0]).into(), source };
        let file = OpenOptions::new().create(true).append(true).open(log).map_err(Error::io("write", log))?;
        let copy = file.try_clone().map_err(failed)?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(file).stderr(copy);
        let child = sys::detach::spawn(command, Vec::new()).map_err(failed)?;
        let pid = child.id() as i32;
        // A child that has ended is a zombie until it is waited for: the pid is still its own.
        let process = Process::of_pid(pid).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(Process { pid, start_time: 0, boot_id: String::new() }),
            _ => Err(failed(error)),
        })?;
        Ok(Self { child, process, log: log.to_owned(), roots: vec![pid] })
    }

    /// Waits until there is a socket. `false` when the server ended first, or the time is over.
    pub fn await_socket(&mut self, socket: &Path, limit: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let dir = socket.parent().unwrap_or(Path::new("/"));
        inotify.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        let pidfd = self.process.pidfd()?;
        while !socket.exists() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(pidfd) = pidfd.as_ref().filter(|_| !left.is_zero()) else { return Ok(false) };
            if sys::signals::pending().is_some() {
                return Ok(false);
            }
            let mut fds = vec![PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            fds.push(PollFd::new(pidfd.as_fd(), PollFlags::POLLIN));
            fds.extend(sys::signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
            if fds[1].any() == Some(true) {
                // It may have gone on in the background.
                return Ok(socket.exists());
            }
            let _ = inotify.read_events();
        }
        Ok(true)
    }

    /// A descriptor that is readable when the process that was started has ended; `None` when it has.
    pub fn pidfd(&self) -> io::Result<Option<std::os::fd::OwnedFd>> {
        self.process.pidfd()
    }

    /// How it ended, if it has.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// All of its processes.
    pub fn processes(&self) -> Vec<Process> {
        processes::tree(&self.roots)
    }

    /// Waits until it has ended, all of it, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        for process in self.processes() {
            if !process.wait(deadline.saturating_duration_since(Instant::now()))? {
                return Ok(None);
            }
        }
        Ok(self.has_ended())
    }

    /// The last that it wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&end_of(&self.log).unwrap_or_default()).trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut all = self.processes();
        processes::go_on(&all);
        if self.has_ended().is_none() {
            let _ = self.process.signal(Signal::SIGTERM);
            let _ = self.process.wait(GRACE);
            all.extend(self.processes());
        }
        for process in &all {
            if let Err(error) = process.end(Duration::ZERO) {
                log::warn!("process {} of the server stays: {error}", process.pid);
            }
        }
        let _ = self.child.wait();
    }
}

/// The last bytes of a log.
fn end_of(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG)))?;
    let mut bytes = Vec::new();
    file.take(LOG).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How a process ended, in words, and whether it crashed: was ended by a signal that no program sends itself on purpose.
pub(crate) fn ending(status: ExitStatus) -> (String, bool) {
    match status.signal().map(Signal::try_from) {
        Some(Ok(signal)) => (format!("was ended by {signal}"), signal != Signal::SIGABRT),
        _ => (format!("ended with {status}"), false),
    }
}
