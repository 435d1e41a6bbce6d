//! A virtqueue while its device works on it: takes chains, gives them back, says when to interrupt.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::buffers::Buffers;
use crate::memory::GuestMemory;

/// Entries of every queue, at most.
pub const QUEUE_SIZE: u16 = 256;

/// The driver broke the protocol. The device asks for a reset and does nothing until then.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

impl From<virtio_queue::Error> for Broken {
    fn from(error: virtio_queue::Error) -> Self {
        Self(error.to_string())
    }
}

/// A request: what the device may read, and what it may write.
pub struct Chain<'m> {
    /// Index of its first descriptor: its name when it is given back.
    pub head: u16,
    /// From the driver.
    pub readable: Buffers<'m>,
    /// For the driver.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    fn parse(memory: &'m GuestMemory, chain: DescriptorChain<&'m GuestMemory>) -> Result<Self, Broken> {
        let head = chain.head_index();
        let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
        let mut last = None;
        for descriptor in chain {
            let (into, access) = match descriptor.is_write_only() {
                true => (&mut writable, Permissions::Write),
                false if writable.len() > 0 => {
                    return Err(Broken("a readable buffer follows a writable one".into()));
                }
                false => (&mut readable, Permissions::Read),
            };
            let slices = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access);
            for slice in slices.map_err(|error| Broken(error.to_string()))? {
                into.push(slice.map_err(|error| Broken(error.to_string()))?);
            }
            last = Some(descriptor);
        }
        // The iterator ends alike at the chain's end and at what it cannot follow.
        match last {
            Some(last) if !last.has_next() => Ok(Self { head, readable, writable }),
            _ => Err(Broken(format!("chain {head} is endless, too long, or leaves its table"))),
        }
    }
}

/// A queue being worked on. Work is bounded: after as many chains as a queue can hold, or when the io thread is asked
/// to park, there seems to be no further one, and the queue is looked at again later.
pub struct Ring<'a> {
    queue: &'a mut Queue,
    memory: &'a GuestMemory,
    yielding: &'a AtomicBool,
    budget: u16,
    used: bool,
    several: bool,
    again: bool,
}

/// What is left to do when a device has worked on a queue.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The driver wants an interrupt.
    pub interrupt: bool,
    /// There may be more.
    pub again: bool,
}

impl<'a> Ring<'a> {
    /// Starts to work on a queue.
    pub fn new(queue: &'a mut Queue, memory: &'a GuestMemory, yielding: &'a AtomicBool) -> Self {
        Self { queue, memory, yielding, budget: QUEUE_SIZE, used: false, several: false, again: false }
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain. When there is none, the driver will notify of the next one.
    ///
    /// # Errors
    /// When ring or chain are not what the specification demands.
    pub fn pop(&mut self) -> Result<Option<Chain<'a>>, Broken> {
        if !self.ready()? {
            return Ok(None);
        }
        let chain =
            self.queue.iter(self.memory)?.next().ok_or_else(|| Broken("the ring cannot be read".into()))?;
        if chain.head_index() >= self.queue.size() {
            return Err(Broken(format!("there is no descriptor {}", chain.head_index())));
        }
        self.budget -= 1;
        self.queue.disable_notification(self.memory)?;
        Chain::parse(self.memory, chain).map(Some)
    }

    /// Whether there is a chain to pop. When there is none, the driver will notify of the next one.
    ///
    /// # Errors
    /// When the ring is not what the specification demands.
    pub fn ready(&mut self) -> Result<bool, Broken> {
        if self.budget == 0 || self.yielding.load(Ordering::Relaxed) {
            self.again = true;
            return Ok(false);
        }
        // Fails when more seems available than the ring holds.
        self.queue.iter(self.memory)?;
        let next = self.queue.next_avail();
        let available = self.queue.avail_idx(self.memory, Ordering::Acquire)?.0;
        Ok(available != next || self.queue.enable_notification(self.memory)?)
    }

    /// Puts the last `count` chains back: they are the next ones again.
    pub fn unpop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Gives a chain back, with the number of bytes written to it.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn push(&mut self, head: u16, bytes: u32) -> Result<(), Broken> {
        self.used = true;
        Ok(self.queue.add_used(self.memory, head, bytes)?)
    }

    /// Gives chains back that the driver must see at once, or not at all.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn push_together(&mut self, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let [before @ .., (head, bytes)] = chains else { return Ok(()) };
        // The ring's index moves with the last one.
        let next = self.queue.next_used();
        for (index, (head, bytes)) in (0..).zip(before) {
            let entry = 4 + 8 * u64::from(next.wrapping_add(index) % self.queue.size());
            // le32 id, le32 len
            let element = u64::from(*head) | u64::from(*bytes) << 32;
            let address = GuestAddress(self.queue.used_ring() + entry);
            self.memory.write_obj(element.to_le(), address).map_err(|error| Broken(error.to_string()))?;
        }
        self.queue.set_next_used(next.wrapping_add(before.len() as u16));
        // The queue has counted one: it cannot tell whether the driver's mark lies among the others.
        self.several |= !before.is_empty();
        self.push(*head, *bytes)
    }

    /// Ends the work.
    ///
    /// # Errors
    /// When the ring cannot be read.
    pub fn finish(self) -> Result<Outcome, Broken> {
        let wanted = self.used && self.queue.needs_notification(self.memory)?;
        Ok(Outcome { interrupt: wanted || self.several, again: self.again })
    }
}
