//! What answers when a vCPU touches an address that is not memory.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A device behind a range of I/O ports or of guest-physical addresses. Offsets are from the range's start. Called on
/// vCPU threads.
pub trait BusDevice: Send {
    /// A read of `data.len()` bytes. What the device leaves alone stays as it was.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// A write.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device that vCPUs share.
type Shared = Arc<Mutex<dyn BusDevice>>;

/// Ranges and who is behind them. Made before the vCPUs run, not changed after.
#[derive(Default, Clone)]
pub struct Bus {
    devices: Vec<(Range<u64>, Shared)>,
}

impl Bus {
    /// Puts a device behind a range.
    ///
    /// # Panics
    /// When the range overlaps one that is taken: the layout is ours.
    pub fn insert(&mut self, range: Range<u64>, device: Shared) {
        let free = self.devices.iter().all(|(taken, _)| taken.end <= range.start || range.end <= taken.start);
        assert!(free, "{range:#x?} overlaps another device");
        self.devices.push((range, device));
    }

    /// A read. Where nobody is, all bits are set, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    /// A write. Where nobody is, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(u64, &Shared)> {
        let (range, device) = self.devices.iter().find(|(range, _)| range.contains(&address))?;
        Some((address - range.start, device))
    }
}
