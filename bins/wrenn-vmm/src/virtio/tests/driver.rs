//! A driver that does to a machine what a guest does.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

pub use super::machine::*;
use crate::layout;
use crate::memory::PAGE;

/// Long enough for what does come, on a busy machine too.
pub const LIMIT: Duration = Duration::from_secs(20);
/// How long nothing is waited for.
pub const NOTHING: Duration = Duration::from_millis(200);
/// Where buffers are, for tests to take.
pub const DATA: u64 = 8 << 20;
/// Entries of the driver's queues.
pub const SIZE: u16 = 256;

/// The ring features, which every device has.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
pub const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;

impl Host {
    /// A driver for the device in a slot.
    pub fn driver(&self, slot: usize) -> Driver<'_> {
        let place = self.virtio.slots()[slot];
        assert_eq!(place.irq, layout::MMIO_IRQ + slot as u32);
        let ring = |index: u64| Ring::at((1 << 20) + (slot as u64 * 4 + index) * 0x1_0000);
        let rings = (0..3).map(ring).collect();
        Driver { host: self, base: place.base, interrupt: &self.interrupts[slot], features: 0, rings }
    }
}

/// A piece of a request.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub address: u64,
    pub bytes: u32,
    pub flags: u32,
}

/// For the device to read.
pub fn readable(address: u64, bytes: u32) -> Piece {
    Piece { address, bytes, flags: 0 }
}

/// For the device to write.
pub fn writable(address: u64, bytes: u32) -> Piece {
    Piece { address, bytes, flags: VRING_DESC_F_WRITE }
}

/// The driver's side of a queue.
#[derive(Clone)]
pub struct Ring {
    pub descriptors: u64,
    pub avail: u64,
    pub used: u64,
    pub size: u32,
    pub ready: bool,
    next_descriptor: u16,
    pub next_avail: u16,
    next_used: u16,
}

impl Ring {
    fn at(base: u64) -> Self {
        Self {
            descriptors: base,
            avail: base + 0x4000,
            used: base + 0x8000,
            size: SIZE.into(),
            ready: true,
            next_descriptor: 0,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// The page that the device writes of it.
    pub fn used_page(&self) -> u64 {
        self.used / PAGE
    }
}

/// A driver.
pub struct Driver<'h> {
    host: &'h Host,
    pub base: u64,
    interrupt: &'h EventFd,
    pub features: u64,
    pub rings: Vec<Ring>,
}

impl Driver<'_> {
    pub fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.host.bus.read(self.base + u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, register: u32, value: u32) {
        self.host.bus.write(self.base + u64::from(register), &value.to_le_bytes());
    }

    pub fn config(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0xee; bytes];
        self.host.bus.read(self.base + u64::from(VIRTIO_MMIO_CONFIG) + offset, &mut data);
        data
    }

    pub fn set_config(&self, offset: u64, data: &[u8]) {
        self.host.bus.write(self.base + u64::from(VIRTIO_MMIO_CONFIG) + offset, data);
    }

    pub fn offered(&self) -> u64 {
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES));
        self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        high << 32 | u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES))
    }

    /// Takes these features; whether the device agrees.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.set(VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
        self.set(VIRTIO_MMIO_STATUS, ACKNOWLEDGED);
        self.take(features);
        self.set(VIRTIO_MMIO_STATUS, FEATURES_OK);
        self.features = features;
        self.get(VIRTIO_MMIO_STATUS) == FEATURES_OK
    }

    pub fn take(&self, features: u64) {
        for page in [1, 0] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * page)) as u32);
        }
    }

    /// Empties the rings, tells the device where they are, and starts it. Returns the status then.
    pub fn start_queues(&mut self) -> u32 {
        for (index, ring) in (0..).zip(&mut self.rings) {
            (ring.next_descriptor, ring.next_avail, ring.next_used) = (0, 0, 0);
            self.host.memory.write_slice(&[0; 0x1000], GuestAddress(ring.avail & 0xff_f000)).unwrap();
            self.host.memory.write_slice(&[0; 0x1000], GuestAddress(ring.used & 0xff_f000)).unwrap();
            let set = |register, value| {
                self.host.bus.write(self.base + u64::from(register), &u32::to_le_bytes(value));
            };
            set(VIRTIO_MMIO_QUEUE_SEL, index);
            set(VIRTIO_MMIO_QUEUE_NUM, ring.size);
            set(VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors as u32);
            set(VIRTIO_MMIO_QUEUE_DESC_HIGH, (ring.descriptors >> 32) as u32);
            set(VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.avail as u32);
            set(VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (ring.avail >> 32) as u32);
            set(VIRTIO_MMIO_QUEUE_USED_LOW, ring.used as u32);
            set(VIRTIO_MMIO_QUEUE_USED_HIGH, (ring.used >> 32) as u32);
            set(VIRTIO_MMIO_QUEUE_READY, u32::from(ring.ready));
        }
        self.set(VIRTIO_MMIO_STATUS, DRIVER_OK);
        self.get(VIRTIO_MMIO_STATUS)
    }

    /// Does all that a driver does at its start, with all features of `mask` that there are.
    pub fn start(&mut self, mask: u64) {
        let features = self.offered() & (mask | VERSION_1);
        assert!(self.negotiate(features));
        assert_eq!(self.start_queues(), DRIVER_OK);
    }

    /// Writes a descriptor.
    pub fn describe(&self, table: u64, index: u16, piece: Piece, next: Option<u16>) {
        let flags = piece.flags | if next.is_some() { VRING_DESC_F_NEXT } else { 0 };
        let mut bytes = Vec::from(piece.address.to_le_bytes());
        bytes.extend(piece.bytes.to_le_bytes());
        bytes.extend((flags as u16).to_le_bytes());
        bytes.extend(next.unwrap_or(0).to_le_bytes());
        self.host.write(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a request available and returns its head. The device is not told.
    pub fn offer(&mut self, queue: usize, pieces: &[Piece]) -> u16 {
        let first = self.rings[queue].next_descriptor;
        let place = |index: usize| (first + index as u16) % SIZE;
        for (index, piece) in pieces.iter().enumerate() {
            let next = (index + 1 < pieces.len()).then(|| place(index + 1));
            self.describe(self.rings[queue].descriptors, place(index), *piece, next);
        }
        self.rings[queue].next_descriptor = place(pieces.len());
        self.make_available(queue, first);
        first
    }

    pub fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = ring.avail + 4 + 2 * u64::from(ring.next_avail % SIZE);
        self.host.memory.write_obj(head, GuestAddress(entry)).unwrap();
        ring.next_avail = ring.next_avail.wrapping_add(1);
        self.host.memory.write_obj(ring.next_avail, GuestAddress(ring.avail + 2)).unwrap();
    }

    /// Whether the device wants to be told of what was made available since `before`.
    pub fn wants_kick(&self, queue: usize, before: u16) -> bool {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let ring = &self.rings[queue];
        if self.features & EVENT_IDX == 0 {
            return self.u16_at(ring.used) & VRING_USED_F_NO_NOTIFY as u16 == 0;
        }
        let event = self.u16_at(ring.used + 4 + 8 * u64::from(SIZE));
        let (new, old) = (ring.next_avail, before);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Asks for an interrupt once `more` further requests are done.
    pub fn ask_after(&self, queue: usize, more: u16) {
        let ring = &self.rings[queue];
        let event = ring.next_used.wrapping_add(more - 1);
        self.host.memory.write_obj(event, GuestAddress(ring.avail + 4 + 2 * u64::from(SIZE))).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    /// How far the device is in the used ring.
    pub fn used_index(&self, queue: usize) -> u16 {
        self.u16_at(self.rings[queue].used + 2)
    }

    fn u16_at(&self, address: u64) -> u16 {
        self.host.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn kick(&self, queue: usize) {
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }

    /// Requests that came back since the last look: head and bytes written.
    pub fn returned(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let mut done = Vec::new();
        while self.u16_at(self.rings[queue].used + 2) != self.rings[queue].next_used {
            let ring = &mut self.rings[queue];
            let entry = ring.used + 4 + 8 * u64::from(ring.next_used % SIZE);
            let [head, bytes] = self.host.memory.read_obj::<[u32; 2]>(GuestAddress(entry)).unwrap();
            ring.next_used = ring.next_used.wrapping_add(1);
            done.push((head as u16, bytes));
        }
        done
    }

    /// Waits for an interrupt, acknowledges it and says what it was for. One without a reason is none: it may come
    /// when the io thread goes on.
    pub fn interrupted(&self, limit: Duration) -> Option<u32> {
        while wait_readable(self.interrupt.as_fd_(), limit) {
            self.interrupt.read().unwrap();
            let status = self.get(VIRTIO_MMIO_INTERRUPT_STATUS);
            self.set(VIRTIO_MMIO_INTERRUPT_ACK, status);
            if status != 0 {
                return Some(status);
            }
        }
        None
    }

    /// Waits for an interrupt and forgets it.
    pub fn lose_interrupt(&self) {
        assert!(wait_readable(self.interrupt.as_fd_(), LIMIT));
        self.interrupt.read().unwrap();
    }

    /// Takes what interrupts there are: one may come after the driver has seen its reason.
    pub fn settle(&self) {
        while self.interrupted(Duration::ZERO).is_some() {}
    }

    /// Waits for the interrupt of a changed configuration.
    pub fn wait_for_config(&self, why: &str) {
        while self.interrupted(LIMIT).unwrap_or_else(|| panic!("{why}")) & VIRTIO_MMIO_INT_CONFIG == 0 {}
    }

    /// Waits for interrupts until `count` requests are back.
    pub fn wait(&mut self, queue: usize, count: usize) -> Vec<(u16, u32)> {
        let mut done = self.returned(queue);
        while done.len() < count {
            assert!(self.interrupted(LIMIT).is_some(), "{} of {count} requests are back", done.len());
            done.extend(self.returned(queue));
            self.ask_after(queue, 1);
            done.extend(self.returned(queue));
        }
        assert_eq!(done.len(), count);
        done
    }

    /// Has one request done. Returns the bytes written.
    pub fn request(&mut self, queue: usize, pieces: &[Piece]) -> u32 {
        self.ask_after(queue, 1);
        let head = self.offer(queue, pieces);
        self.kick(queue);
        let done = self.wait(queue, 1);
        assert_eq!(done[0].0, head);
        done[0].1
    }
}

/// Whether a descriptor becomes readable in time.
pub fn wait_readable(fd: BorrowedFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(limit).unwrap()).unwrap() == 1
}

/// `EventFd` is not `AsFd`.
trait Fd {
    fn as_fd_(&self) -> BorrowedFd<'_>;
}

impl Fd for EventFd {
    fn as_fd_(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `self` lives, and so is what is borrowed from it.
        unsafe { BorrowedFd::borrow_raw(self.as_raw_fd()) }
    }
}
