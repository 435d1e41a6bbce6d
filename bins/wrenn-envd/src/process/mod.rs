//! Running processes: start, feed, watch and end them.

mod error;
pub mod identity;
mod output;
pub mod reaper;
mod running;
pub mod service;
mod spawn;
mod terminal;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::sync::oneshot;

pub use error::Error;
use reaper::Status;
use running::Running;

/// The processes this agent started and has not reaped yet.
#[derive(Default)]
pub struct Processes(Mutex<Table>);

/// What the lock guards. A pid is in the table exactly as long as it cannot mean another process.
#[derive(Default)]
pub struct Table(HashMap<u32, (Arc<Running>, oneshot::Sender<Status>)>);

impl Processes {
    /// The table, locked; never held across an await.
    pub fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Takes a reaped process out and passes its status on. An orphan is in no table; its status is nobody's.
    pub fn ended(&mut self, pid: u32, status: Status) {
        if let Some((_, exit)) = self.0.remove(&pid) {
            let _ = exit.send(status); // received by the process's own task, which lives until then
        }
    }

    /// Sends a signal to the process and everything in its group, while the pid is surely still its own.
    ///
    /// # Errors
    /// When it has ended, or as the kernel says.
    fn signal(&self, pid: u32, signal: Signal) -> Result<(), Error> {
        let Some(process) = self.by_pid(pid) else { return Err(Error::NoProcess(pid.to_string())) };
        let pid = Pid::from_raw(process.pid.cast_signed());
        let sent = match killpg(pid, signal) {
            Err(Errno::ESRCH) => kill(pid, signal), // so young that it has no group of its own yet
            sent => sent,
        };
        sent.map_err(Error::io("sending the signal"))
    }

    fn insert(&mut self, process: Arc<Running>) -> oneshot::Receiver<Status> {
        let (exit, status) = oneshot::channel();
        self.0.insert(process.pid, (process, exit));
        status
    }

    fn by_pid(&self, pid: u32) -> Option<Arc<Running>> {
        self.0.get(&pid).map(|(process, _)| process.clone())
    }

    fn by_tag(&self, tag: &str) -> Option<Arc<Running>> {
        self.all().find(|process| process.tag.as_deref() == Some(tag)).cloned()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Running>> {
        self.0.values().map(|(process, _)| process)
    }
}
