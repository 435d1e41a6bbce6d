//! The supervisor at work, followed step by step: its journal is in the sandbox's document.

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sys::process::Process;

use crate::hold::hold;
use crate::program::LIMIT;
use crate::{Roots, program};

/// How often is tried to stop something at one step.
const TRIES: usize = 20;

/// A verb of the supervisor's that runs, and what it records.
#[derive(Debug)]
pub struct Followed {
    child: Child,
    dir: PathBuf,
    inotify: Inotify,
    pending: usize,
    watched: bool,
}

impl Followed {
    /// Starts it. `command` is the supervisor's, with its arguments; `id` the sandbox it works on.
    ///
    /// # Panics
    /// When that fails.
    pub fn start(command: &mut Command, roots: &Roots, id: &str) -> Self {
        let all = roots.root().join("sandboxes");
        fs::create_dir_all(&all).expect("the directory of sandboxes");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        inotify.add_watch(&all, AddWatchFlags::IN_CREATE).expect("watched");
        let dir = all.join(id);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut followed = Self { child: spawned(command), dir, inotify, pending: 0, watched: false };
        followed.watch();
        followed
    }

    /// As [`Followed::start`], for a verb on a sandbox that is there.
    ///
    /// # Panics
    /// When that fails.
    pub fn wrenn(roots: &Roots, args: &[&str], id: &str) -> Self {
        let mut command = Command::new(program::path("wrenn"));
        command.args(args).env("WRENN_ROOT", roots.root()).env("WRENN_RUN", roots.run());
        command.env("WRENN_FIRECRACKER", program::path("toy-vmm"));
        Self::start(&mut command, roots, id)
    }

    fn watch(&mut self) {
        let added = self.inotify.add_watch(&self.dir, AddWatchFlags::IN_MOVED_TO);
        // What was recorded before it was watched counts as one record.
        if !self.watched && added.is_ok() {
            self.watched = true;
            self.pending += usize::from(self.document().is_some_and(|document| document["op"].is_object()));
        }
    }

    /// The document as it is now.
    pub fn document(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.dir.join("sandbox.json")).ok()?).ok()
    }

    /// Waits for its next record. Gives the step as it is now, which may be a later one; `None` when it has ended.
    ///
    /// # Panics
    /// When neither comes.
    pub fn next_step(&mut self) -> Option<String> {
        let deadline = Instant::now() + LIMIT;
        let process = Process::of_pid(self.child.id() as i32).ok()?;
        loop {
            if self.pending > 0 {
                self.pending -= 1;
                let document = self.document()?;
                // The last record is that there is nothing at work any more.
                return document["op"]["step"].as_str().map(str::to_owned);
            }
            let pidfd = process.pidfd().expect("a pidfd")?;
            let mut fds = [self.inotify.as_fd(), pidfd.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "neither a step nor an end");
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => panic!("poll: {errno}"),
            }
            let (told, ended) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
            if told {
                self.read();
            } else if ended {
                return None;
            }
        }
    }

    fn read(&mut self) {
        let Ok(events) = self.inotify.read_events() else { return };
        for event in events {
            let name = event.name.unwrap_or_default();
            if event.mask.contains(AddWatchFlags::IN_MOVED_TO) {
                self.pending += usize::from(name == "sandbox.json");
            } else if self.dir.file_name() == Some(&name) {
                self.watch();
            }
        }
    }

    /// Starts a verb by `start` and stops it at this step. One whose step is over before it could be stopped is left to come
    /// to its end; after `restore` another is started.
    ///
    /// # Panics
    /// When that does not succeed.
    pub fn stopped_at(step: &str, mut start: impl FnMut() -> Self, mut restore: impl FnMut()) -> Self {
        for _ in 0..TRIES {
            let mut followed = start();
            while let Some(now) = followed.next_step() {
                if now == step {
                    hold(followed.child.id() as i32);
                    break;
                }
            }
            if followed.document().is_some_and(|document| document["op"]["step"] == step) {
                return followed;
            }
            followed.end();
            restore();
        }
        panic!("it could never be stopped at {step}");
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has been waited for.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it is there");
    }

    /// Has it go on if it was stopped, and waits for its end. Gives its exit status, `None` when a signal ended it.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(mut self) -> Option<i32> {
        self.signal(Signal::SIGCONT);
        self.ended(LIMIT)
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.ended(LIMIT);
    }

    fn ended(&mut self, limit: Duration) -> Option<i32> {
        if let Ok(process) = Process::of_pid(self.child.id() as i32) {
            assert!(process.wait(limit).expect("a pidfd"), "it does not end in {limit:?}");
        }
        self.child.wait().expect("its status").code()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawned(command: &mut Command) -> Child {
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
