//! The few devices of a PC that a kernel cannot do without: behind I/O ports, each with its own file.

pub mod power;
mod reset;
mod serial;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

pub use power::Power;
pub use reset::Keyboard;
pub use serial::{Serial, SerialState};

/// An interrupt line: an eventfd that KVM turns into an edge.
pub struct Line(EventFd);

impl Line {
    /// A line behind an eventfd that is registered with KVM.
    pub fn new(event: EventFd) -> Self {
        Self(event)
    }
}

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.write(1)
    }
}
