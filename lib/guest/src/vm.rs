//! The VM that an agent lives in: when it ends, so does every call to the agent.
//!
//! A guest that is taken down says no goodbye: its network is gone, and whoever reads from it would read for ever.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sys::process::{Process, any_readable};
use wire::Document;

use crate::Error;

/// How long a VM may be on its way out when its connections are broken already.
const ENDING: Duration = Duration::from_millis(500);

/// A VM, and who watches it while somebody talks to its agent.
#[derive(Debug)]
pub(crate) struct Vm {
    process: Process,
    log: Option<String>,
    /// Dropped with the last who holds this: the watch ends.
    watch: Mutex<Option<io::PipeWriter>>,
}

impl Vm {
    /// The VM that the document names, if it names one.
    pub fn of(document: &Document) -> Result<Option<Arc<Self>>, wire::Error> {
        if document.get("vm.pid").is_none() {
            return Ok(None);
        }
        let (process, log) = (document.process("vm")?, document.find("vm.log")?);
        Ok(Some(Arc::new(Self { process, log, watch: Mutex::new(None) })))
    }

    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Whether it has ended, or does so in a moment.
    pub fn has_ended(&self) -> bool {
        self.ends_within(ENDING)
    }

    /// Waits for its end, at most so long. Whether it has come.
    pub fn ends_within(&self, limit: Duration) -> bool {
        self.process.wait(limit).unwrap_or(false)
    }

    /// That it ended while its agent was waited for, with the last it had to say: whoever takes down what is left takes
    /// the log too.
    pub fn is_gone(&self) -> wire::Error {
        let log = self.log.clone().unwrap_or_else(|| "its log".to_owned());
        let last = wire::last_lines(log.as_ref(), 0);
        let gone = Error::VmGone { pid: self.pid(), log }.into();
        last.into_iter().fold(gone, wire::Error::detail)
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
            let ended = pidfd.is_none_or(|pidfd| {
                let ready = any_readable(&[pidfd.as_fd(), over.as_fd()]);
                ready.is_ok_and(|ready| ready[0])
            });
            if ended {
                http.shutdown();
            }
        })?;
        *watch = Some(writer);
        Ok(())
    }
}
