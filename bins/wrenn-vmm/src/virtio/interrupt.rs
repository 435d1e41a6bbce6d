//! A device's interrupt line and the two registers that the VMM changes on its own.

use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::EventFd;

/// What a driver is interrupted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Buffers were used.
    Queue = VIRTIO_MMIO_INT_VRING as isize,
    /// The configuration changed, or the device needs a reset.
    Config = VIRTIO_MMIO_INT_CONFIG as isize,
}

/// Interrupts the guest through an eventfd that KVM listens on. Needs no lock: it is used beside the device, which may
/// be waiting for a page.
#[derive(Debug)]
pub struct Interrupt {
    event: EventFd,
    status: AtomicU32,
    generation: AtomicU32,
}

impl Interrupt {
    /// A line with nothing pending.
    pub fn new(event: EventFd) -> Self {
        Self { event, status: AtomicU32::new(0), generation: AtomicU32::new(0) }
    }

    /// Sets the reason's bit in the status, then interrupts.
    pub fn signal(&self, reason: Reason) {
        self.status.fetch_or(reason as u32, Ordering::SeqCst);
        self.fire();
    }

    /// Says that the configuration space has changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.signal(Reason::Config);
    }

    /// Interrupts again for what the driver has not acknowledged. An interrupt too many costs it one look at the
    /// status; one that got lost between KVM's work queue and a snapshot would cost it its device.
    pub fn repeat(&self) {
        if self.status() != 0 {
            self.fire();
        }
    }

    /// `InterruptStatus`.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// `InterruptACK`: the bits are handled.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// `ConfigGeneration`.
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Puts back what was saved.
    pub fn restore(&self, status: u32, generation: u32) {
        self.status.store(status, Ordering::SeqCst);
        self.generation.store(generation, Ordering::SeqCst);
    }

    fn fire(&self) {
        // Only a counter at its limit makes this fail: then it is readable as it is.
        if let Err(error) = self.event.write(1) {
            log::warn!("an interrupt could not be signalled: {error}");
        }
    }
}
