//! How a guest's run ends: said once, by whoever sees it first.

use std::io;
use std::sync::OnceLock;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest reset the machine or turned it off.
    Reset,
    /// It cannot go on, for the reason given.
    Crash(String),
}

/// Where the end is recorded and waited for. Shared by the vCPUs, the devices that can end a machine and the API.
pub struct Ending {
    event: EventFd,
    exit: OnceLock<Exit>,
}

impl Ending {
    /// A machine that goes on.
    ///
    /// # Errors
    /// What eventfd said.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?, exit: OnceLock::new() })
    }

    /// Ends it; the first reason stays.
    pub fn end(&self, exit: Exit) {
        if self.exit.set(exit).is_ok()
            && let Err(error) = self.event.write(1)
        {
            log::error!("the guest has ended, and the API cannot be told: {error}");
        }
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().cloned()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.exit.get().is_some()
    }

    /// Readable once it has.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let ending = Ending::new().unwrap();
        assert!(ending.event().read().is_err());
        ending.end(Exit::Reset);
        ending.end(Exit::Crash("later".into()));
        assert_eq!(ending.exit(), Some(Exit::Reset));
        assert_eq!(ending.event().read().unwrap(), 1);
    }
}
