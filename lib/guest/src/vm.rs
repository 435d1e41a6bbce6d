//! The VM that an agent lives in: when it ends, so does every call to the agent.
//!
//! A guest that is taken down says no goodbye: its network is gone, and whoever reads from it would read for ever.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sys::process::Process;
use wire::Document;

/// How long a VM may be on its way out when its connections are broken already.
const ENDING: Duration = Duration::from_millis(500);

/// A VM, and who watches it while somebody talks to its agent.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Process,
    /// Dropped with the last who holds this: the watch ends.
    watch: Mutex<Option<io::PipeWriter>>,
}

impl Vm {
    /// The VM that the document names, if it names one.
    pub fn of(document: &Document) -> Result<Option<Arc<Self>>, wire::Error> {
        if document.get("vm.pid").is_none() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self { process: document.process("vm")?, watch: Mutex::new(None) })))
    }

    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Whether it has ended, or does so in a moment.
    pub fn has_ended(&self) -> bool {
        self.process.wait(ENDING).unwrap_or(false)
    }

    /// From now on all of `http`'s connections are cut when the VM ends.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn watch(&self, http: &ureq::Agent) -> io::Result<()> {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if watch.is_some() {
            return Ok(());
        }
        let (over, writer) = io::pipe()?;
        // One that has ended already cuts at once.
        let pidfd = self.process.pidfd()?;
        let http = http.clone();
        let watcher = std::thread::Builder::new().name(format!("vm {}", self.pid())).stack_size(64 << 10);
        watcher.spawn(move || {
            let ended = pidfd.is_none_or(|pidfd| first_of(&pidfd, &over));
            if ended {
                http.shutdown();
            }
        })?;
        *watch = Some(writer);
        Ok(())
    }
}

/// Waits until one of them is readable. Whether it was the first.
fn first_of(one: &impl AsFd, other: &impl AsFd) -> bool {
    loop {
        let mut fds = [one.as_fd(), other.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) => return fds[0].any() == Some(true),
        }
    }
}
