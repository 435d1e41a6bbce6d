//! A virtual machine: memory, vCPUs and devices, from boot or restore to its end.

mod build;
mod ending;
mod state;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

pub use ending::{Ending, Exit};
pub use state::MachineState;

use crate::boot;
use crate::kvm::{self, Thread, Vm};
use crate::legacy::Serial;
use crate::virtio::{self, BalloonHandle, Virtio, VirtioState};

/// How long everything may take to come to rest. Only a page that does not come takes longer than an instant.
const REST: Duration = Duration::from_secs(30);

/// Why a machine cannot be made, or not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The kernel or what it is given.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The devices.
    #[error(transparent)]
    Virtio(#[from] virtio::Error),
    /// An event descriptor or an interrupt line.
    #[error("an event descriptor: {0}")]
    Event(#[source] std::io::Error),
    /// The saved state is not one of this machine.
    #[error("the saved state does not fit: {0}")]
    State(String),
    /// It runs.
    #[error("the machine is running")]
    Running,
    /// It will never run again.
    #[error("the guest has ended")]
    Ended,
}

/// A machine.
pub struct Machine {
    // The vCPUs go first, then what they use.
    vcpus: Vec<Thread>,
    virtio: Virtio,
    serial: Arc<Mutex<Serial>>,
    ending: Arc<Ending>,
    running: bool,
    vm: Vm,
}

impl Machine {
    /// Stops the vCPUs, then the devices. Nothing happens to a machine that stands still. If it fails the machine runs.
    ///
    /// # Errors
    /// When something does not come to rest.
    pub fn pause(&mut self) -> Result<(), Error> {
        if !self.running {
            return Ok(());
        }
        let paused = self.pause_vcpus().and_then(|()| Ok(self.virtio.park()?));
        match paused {
            Ok(()) => self.running = false,
            // A vCPU that stops after all finds the order to run behind the one to pause.
            Err(_) => self.vcpus.iter().try_for_each(Thread::run)?,
        }
        paused
    }

    fn pause_vcpus(&self) -> Result<(), Error> {
        let deadline = Instant::now() + REST;
        let asked = self.vcpus.iter().map(Thread::pause).collect::<Result<Vec<_>, _>>()?;
        Ok(asked.into_iter().try_for_each(|asked| asked.wait(deadline))?)
    }

    /// Lets the devices work, then the vCPUs run. Nothing happens to a machine that does.
    ///
    /// # Errors
    /// When a vCPU's thread is dead.
    pub fn resume(&mut self) -> Result<(), Error> {
        if self.running {
            return Ok(());
        }
        self.virtio.unpark();
        self.vcpus.iter().try_for_each(Thread::run)?;
        self.running = true;
        Ok(())
    }

    /// The state of everything but memory and disks.
    ///
    /// # Errors
    /// When it is running or has ended, or what KVM said.
    pub fn save(&self) -> Result<(MachineState, VirtioState), Error> {
        if self.running {
            return Err(Error::Running);
        }
        if self.ending.has_ended() {
            return Err(Error::Ended);
        }
        let deadline = Instant::now() + REST;
        let asked = self.vcpus.iter().map(Thread::save).collect::<Result<Vec<_>, _>>()?;
        let vcpus =
            asked.into_iter().map(|asked| asked.wait(deadline)?).collect::<Result<_, kvm::Error>>()?;
        let serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner).save();
        let machine = MachineState { vcpus, vm: self.vm.save()?, serial };
        Ok((machine, self.virtio.save()?))
    }

    /// Whether KVM logs the pages that vCPUs write.
    ///
    /// # Errors
    /// What KVM said.
    pub fn log_dirty(&self, on: bool) -> Result<(), Error> {
        Ok(self.vm.log_dirty(on)?)
    }

    /// KVM's dirty bitmap of each region, a bit a page, in the order of `layout::regions`. Reading clears it in KVM.
    ///
    /// # Errors
    /// What KVM said.
    pub fn take_dirty(&self) -> Result<Vec<Vec<u64>>, Error> {
        Ok(self.vm.take_dirty()?)
    }

    /// Readable once the guest has ended.
    pub fn exit_event(&self) -> &EventFd {
        self.ending.event()
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.ending.exit()
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.virtio.balloon()
    }
}
