//! virtio devices behind the MMIO transport: block, net, balloon, entropy.

mod balloon;
mod block;
mod buffers;
mod device;
mod error;
mod interrupt;
mod io;
mod net;
mod registers;
mod ring;
mod rng;
mod state;
#[cfg(test)]
mod tests;
mod unit;

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::eventfd::EventFd;

pub use self::balloon::{Balloon, BalloonHandle, BalloonStatistics};
pub use self::block::Block;
pub use self::error::Error;
pub use self::net::Net;
pub use self::rng::Rng;
pub use self::state::VirtioState;

use self::device::Device;
use self::interrupt::Interrupt;
use self::io::{Gate, IoThread};
use self::registers::Registers;
use self::unit::Unit;
use crate::bus::Bus;
use crate::layout;
use crate::memory::{Discard, GuestMemory};

/// The devices of a machine, opened and not yet running. Their slots follow one another in this order.
#[derive(Default)]
pub struct Devices {
    /// The balloon, if there is one.
    pub balloon: Option<Balloon>,
    /// Disks, root first.
    pub blocks: Vec<Block>,
    /// Network interfaces.
    pub nets: Vec<Net>,
    /// The entropy device, if there is one.
    pub rng: Option<Rng>,
}

/// Where the guest finds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Guest-physical address of its registers, [`layout::MMIO_BYTES`] of them.
    pub base: u64,
    /// Its interrupt line.
    pub irq: u32,
}

/// A machine's devices at work.
pub struct Virtio {
    // First: the thread ends before the devices do.
    io: IoThread,
    units: Vec<Arc<Unit>>,
    slots: Vec<Slot>,
    balloon: Option<BalloonHandle>,
}

impl Virtio {
    /// Puts devices into their slots and starts the io thread, parked. `irq` makes the eventfd that raises an interrupt
    /// line; `notify` has the event signalled when the guest writes the value (32 bits wide) to the address.
    ///
    /// # Errors
    /// When there are too many, or what one needs cannot be had.
    pub fn new(
        devices: Devices,
        memory: GuestMemory,
        discard: Arc<dyn Discard>,
        irq: &mut dyn FnMut(u32) -> std::io::Result<EventFd>,
        notify: &mut dyn FnMut(&EventFd, u64, u32) -> std::io::Result<()>,
    ) -> Result<Self, Error> {
        let count = devices.count();
        let lines = (layout::IRQ_END - layout::MMIO_IRQ) as usize;
        if count > lines {
            return Err(Error::TooMany(count));
        }
        let slots: Vec<Slot> = (0..count as u32).map(Slot::nth).collect();
        let line = |(slot, place): (usize, &Slot)| match irq(place.irq) {
            Ok(event) => Ok(Arc::new(Interrupt::new(event))),
            Err(source) => Err(Error::Setup { slot, source }),
        };
        let interrupts = slots.iter().enumerate().map(line).collect::<Result<Vec<_>, _>>()?;
        let (kinds, balloon) = devices.running(&memory, discard, &interrupts)?;
        let gate = Arc::new(Gate::default());
        let mut units = Vec::with_capacity(count);
        for (slot, (device, interrupt)) in kinds.into_iter().zip(interrupts).enumerate() {
            let failed = |source| Error::Setup { slot, source };
            let unit =
                Unit::new(device, interrupt, memory.clone(), Arc::clone(&gate.yielding)).map_err(failed)?;
            let register = slots[slot].base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
            for (queue, kick) in (0..).zip(&unit.kicks) {
                notify(kick, register, queue).map_err(failed)?;
            }
            units.push(Arc::new(unit));
        }
        let io = IoThread::start(units.clone(), gate)?;
        Ok(Self { io, units, slots, balloon })
    }

    /// Puts the devices' registers on the bus.
    pub fn attach(&self, bus: &mut Bus) {
        for (unit, slot) in self.units.iter().zip(&self.slots) {
            let range = slot.base..slot.base + layout::MMIO_BYTES;
            bus.insert(range, Arc::new(Mutex::new(Registers(Arc::clone(unit)))));
        }
    }

    /// Where the devices are.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns once the io thread touches nothing any more. Parked twice is parked.
    ///
    /// # Errors
    /// When it does not come to rest within 30 s; it goes on then.
    pub fn park(&self) -> Result<(), Error> {
        self.io.park()
    }

    /// Lets the io thread go on. It looks at all queues first.
    pub fn unpark(&self) {
        self.io.unpark();
    }

    /// The devices' state, while parked. What the guest has written to its disks is on them then.
    ///
    /// # Errors
    /// When a disk cannot be brought up to date.
    pub fn save(&self) -> Result<VirtioState, Error> {
        let save =
            |(slot, unit): (usize, &Arc<Unit>)| unit.save().map_err(|source| Error::Flush { slot, source });
        Ok(VirtioState { devices: self.units.iter().enumerate().map(save).collect::<Result<_, _>>()? })
    }

    /// Puts the devices into a saved state, while parked and before the guest runs.
    ///
    /// # Errors
    /// When the state is not these devices'.
    pub fn restore(&self, state: &VirtioState) -> Result<(), Error> {
        if state.devices.len() != self.units.len() {
            let (saved, here) = (state.devices.len(), self.units.len());
            return Err(Error::State(format!("{saved} devices are saved where {here} are")));
        }
        let mut pairs = self.units.iter().zip(&state.devices);
        pairs.try_for_each(|(unit, state)| unit.restore(state)).map_err(Error::State)
    }

    /// The balloon, if there is one. Never waits for the io thread.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }
}

impl Slot {
    fn nth(n: u32) -> Self {
        Self { base: layout::MMIO_BASE + u64::from(n) * layout::MMIO_BYTES, irq: layout::MMIO_IRQ + n }
    }
}

/// Devices in the order of their slots.
type Running = (Vec<Box<dyn Device>>, Option<BalloonHandle>);

impl Devices {
    /// How many there are.
    pub fn count(&self) -> usize {
        usize::from(self.balloon.is_some())
            + self.blocks.len()
            + self.nets.len()
            + usize::from(self.rng.is_some())
    }

    /// Connects them with what they need of the machine.
    fn running(
        self,
        memory: &GuestMemory,
        discard: Arc<dyn Discard>,
        interrupts: &[Arc<Interrupt>],
    ) -> Result<Running, Error> {
        let mut devices: Vec<Box<dyn Device>> = Vec::with_capacity(interrupts.len());
        let mut handle = None;
        if let Some(balloon) = self.balloon {
            let interrupt = Arc::clone(&interrupts[0]);
            let inflatable = balloon.inflatable(memory, discard, interrupt);
            let inflatable = inflatable.map_err(|source| Error::Setup { slot: 0, source })?;
            handle = Some(inflatable.handle());
            devices.push(Box::new(inflatable));
        }
        devices.extend(self.blocks.into_iter().map(|block| Box::new(block) as Box<dyn Device>));
        devices.extend(self.nets.into_iter().map(|net| Box::new(net) as Box<dyn Device>));
        devices.extend(self.rng.into_iter().map(|rng| Box::new(rng) as Box<dyn Device>));
        Ok((devices, handle))
    }
}
