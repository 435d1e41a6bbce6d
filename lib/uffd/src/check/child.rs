//! The process that plays the VMM's part, as it is seen from outside: what it says, and what becomes of it.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use sys::process::Process;

use super::server::{Server, ending};
use crate::Error;
use crate::role::{VMM, program};

/// How much longer than its limit, at which it gives up by itself, a VMM is listened to.
const SLACK: Duration = Duration::from_secs(5);

/// How often to look whether the last process of a server has ended.
const LOOK: Duration = Duration::from_millis(50);

/// What a VMM has said, or what became of it.
pub(super) enum Heard {
    Passed,
    Failed(String),
    Skipped(String),
    /// It is the server's turn.
    Ready,
    /// It has ended; how, and by which signal.
    Died(String, Option<Signal>),
}

/// The VMM's process.
pub(super) struct Vmm {
    child: Child,
    process: Option<Process>,
    events: io::PipeReader,
    heard: Vec<u8>,
    /// Its end is the VMM's.
    _leash: io::PipeWriter,
}

impl Vmm {
    /// Starts one, with what it is to do.
    pub fn start(orders: &Value) -> Result<Self, Error> {
        let program = program()?;
        let failed = |source| Error::Io { doing: "start", path: program.clone(), source };
        let (events, writer) = io::pipe().map_err(failed)?;
        let (reader, leash) = io::pipe().map_err(failed)?;
        let mut command = Command::new(&program);
        command.arg(VMM).arg(orders.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = sys::detach::spawn(command, vec![writer.into(), reader.into()]).map_err(failed)?;
        let process = Process::of_pid(child.id() as i32).ok();
        Ok(Self { child, process, events, heard: Vec::new(), _leash: leash })
    }

    /// Waits until it has something to say that matters: a little longer than `limit`, at which it gives up by itself, or
    /// `afterwards` when its server has ended.
    pub fn hear(
        &mut self,
        server: &mut Server,
        limit: Duration,
        afterwards: Duration,
    ) -> Result<Heard, Error> {
        let failed = |error: io::Error| Error::io("hear", "the VMM")(error);
        let mut deadline = Instant::now() + limit + SLACK;
        let mut gone = server.pidfd().map_err(failed)?;
        // The process that was started may go before those that it has started, or have gone already.
        let (mut ended, mut abandoned) = (gone.is_none(), false);
        loop {
            while let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Value = serde_json::from_slice(&self.heard[..end]).unwrap_or_default();
                self.heard.drain(..=end);
                let text = |name: &str| line[name].as_str().map(str::to_owned);
                if let Some(pid) = line["server"].as_i64().filter(|&pid| pid > 0) {
                    server.roots.push(pid as i32);
                } else if let Some(why) = text("failed") {
                    return Ok(Heard::Failed(why));
                } else if let Some(why) = text("skipped") {
                    return Ok(Heard::Skipped(why));
                } else if line["passed"] == true {
                    return Ok(Heard::Passed);
                } else if line["ready"] == true {
                    return Ok(Heard::Ready);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || sys::signals::pending().is_some() {
                return Ok(Heard::Failed(self.overdue(server, abandoned)));
            }
            let mut fds = vec![PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            fds.extend(gone.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            fds.extend(sys::signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            let left = if ended && !abandoned { left.min(LOOK) } else { left };
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
                .map_err(|errno| failed(errno.into()))?;
            let said = fds[0].any() == Some(true);
            if gone.is_some() && fds[1].any() == Some(true) {
                (gone, ended) = (None, true);
            }
            if said {
                let mut buffer = [0; 4096];
                match self.events.read(&mut buffer).map_err(failed)? {
                    0 => return Ok(self.how_it_ended()),
                    count => self.heard.extend_from_slice(&buffer[..count]),
                }
            }
            if ended && !abandoned && server.processes().is_empty() {
                abandoned = true;
                deadline = deadline.min(Instant::now() + afterwards);
            }
        }
    }

    fn overdue(&self, server: &mut Server, abandoned: bool) -> String {
        match server.has_ended().filter(|_| abandoned).map(ending) {
            Some((how, _)) => format!("the server {how} and left its VMM waiting"),
            None => "the VMM said nothing".into(),
        }
    }

    fn how_it_ended(&self) -> Heard {
        if !matches!(self.process.as_ref().map(|process| process.wait(SLACK)), Some(Ok(true)) | None) {
            return Heard::Died("silent".into(), None);
        }
        // Looked at and not waited for: a server that kills its peer by pid must not meet another process.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(Pid::from_raw(self.child.id() as i32)), flags) {
            Ok(WaitStatus::Signaled(_, signal, _)) => Heard::Died(format!("ended by {signal}"), Some(signal)),
            Ok(WaitStatus::Exited(_, status)) => {
                Heard::Died(format!("ended with exit status: {status}"), None)
            }
            _ => Heard::Died("ended".into(), None),
        }
    }

    /// Ends it by SIGKILL. Its pid stays its own until the server has ended.
    pub fn kill(&mut self) {
        if let Some(process) = &self.process
            && let Err(error) = process.end(Duration::ZERO)
        {
            log::warn!("the VMM, pid {}, stays: {error}", process.pid);
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
