//! A machine without vCPUs.

use std::sync::{Arc, Mutex};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::memory::{Discard, GuestMemory, PAGE};
use crate::virtio::{Devices, Virtio};

/// Bytes of memory.
pub const MEMORY: u64 = 32 << 20;

/// Remembers what it was told to discard.
#[derive(Default)]
pub struct Recorder {
    pub ranges: Mutex<Vec<(u64, u64)>>,
    /// While it is held, discarding waits, as for a page server.
    pub blocked: Mutex<()>,
}

impl Discard for Recorder {
    fn discard(&self, address: u64, bytes: u64) -> std::io::Result<()> {
        let _blocked = self.blocked.lock().unwrap();
        self.ranges.lock().unwrap().push((address, bytes));
        match address + bytes {
            ..=MEMORY => Ok(()),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }
}

/// The machine.
pub struct Host {
    pub memory: GuestMemory,
    pub virtio: Virtio,
    pub bus: Bus,
    pub discard: Arc<Recorder>,
    pub interrupts: Vec<EventFd>,
}

pub fn memory() -> GuestMemory {
    let region = GuestRegionMmap::from_range(GuestAddress(0), MEMORY as usize, None).unwrap();
    GuestMemoryMmap::<AtomicBitmap>::from_regions(vec![region]).unwrap()
}

impl Host {
    /// A machine that runs.
    pub fn new(devices: Devices) -> Self {
        let host = Self::parked(devices, memory());
        host.virtio.unpark();
        host
    }

    /// A machine whose io thread is parked.
    pub fn parked(devices: Devices, memory: GuestMemory) -> Self {
        let discard = Arc::new(Recorder::default());
        let mut interrupts = Vec::new();
        let mut irq = |_| {
            let event = EventFd::new(EFD_NONBLOCK)?;
            interrupts.push(event.try_clone()?);
            Ok(event)
        };
        let recorder: Arc<dyn Discard> = discard.clone();
        let virtio = Virtio::new(devices, memory.clone(), recorder, &mut irq, &mut |_, _, _| Ok(())).unwrap();
        let mut bus = Bus::default();
        virtio.attach(&mut bus);
        Self { memory, virtio, bus, discard, interrupts }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    /// Pages that are marked as written, and forgets them.
    pub fn take_dirty(&self) -> Vec<u64> {
        let region = self.memory.iter().next().unwrap();
        let words = (**region).bitmap().get_and_reset();
        (0..region.len() / PAGE).filter(|page| words[*page as usize / 64] >> (page % 64) & 1 == 1).collect()
    }
}
