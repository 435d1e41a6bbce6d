//! What a kind of device adds to what all virtio devices have in common.

use std::io;
use std::os::fd::BorrowedFd;

use super::ring::{Broken, Ring};
use super::state::Own;

/// A kind of device. Everything is called with the device's lock held.
pub trait Device: Send {
    /// The specification's number for it.
    fn kind(&self) -> u32;

    /// Features it offers, beside those of all devices.
    fn features(&self) -> u64;

    /// How many queues it has.
    fn queues(&self) -> usize;

    /// The configuration space. Past its end it reads zero.
    fn config(&self) -> Vec<u8>;

    /// The driver writes to the configuration space.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is there, and took these features.
    ///
    /// # Errors
    /// What kept the device from working; the driver is told that it needs a reset.
    fn start(&mut self, features: u64) -> io::Result<()>;

    /// The driver is gone, and what it gave too.
    fn reset(&mut self) {}

    /// The driver has notified of a queue, or the [`source`](Self::source) of it is readable. On the io thread.
    ///
    /// # Errors
    /// When the driver broke the protocol.
    fn process(&mut self, queue: usize, ring: &mut Ring) -> Result<(), Broken>;

    /// A descriptor that work comes from, and the queue it is for. Told once each time it becomes readable.
    fn source(&self) -> Option<(BorrowedFd<'_>, usize)> {
        None
    }

    /// Brings to the disk what a snapshot relies on.
    ///
    /// # Errors
    /// What the kernel said.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// State of its own.
    fn save(&self) -> Own {
        Own::None
    }

    /// Puts state of its own back, after [`start`](Self::start) if the driver is there.
    ///
    /// # Errors
    /// What about it cannot be.
    fn restore(&mut self, own: &Own) -> Result<(), String> {
        match own {
            Own::None => Ok(()),
            _ => Err("state of another kind of device".into()),
        }
    }
}
