//! A ring without a device.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::{Queue, QueueState};

use super::driver::*;
use crate::virtio::Devices;
use crate::virtio::ring::{Outcome, QUEUE_SIZE, Ring};

const DESCRIPTORS: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_4000;
const USED: u64 = 0x1_8000;

/// A machine, and a queue of it with one request: a page to write.
fn one_request() -> (Host, Queue) {
    let host = Host::parked(Devices::default(), memory());
    host.write(DESCRIPTORS, &[&DATA.to_le_bytes()[..], &4096_u32.to_le_bytes(), &[2, 0, 0, 0]].concat());
    host.write(AVAIL + 2, &1_u16.to_le_bytes());
    let state = QueueState {
        max_size: QUEUE_SIZE,
        size: QUEUE_SIZE,
        ready: true,
        desc_table: DESCRIPTORS,
        avail_ring: AVAIL,
        used_ring: USED,
        ..QueueState::default()
    };
    (host, Queue::try_from(state).unwrap())
}

#[test]
fn a_thread_that_is_to_park_begins_no_further_request() {
    let (host, mut queue) = one_request();
    let yielding = AtomicBool::new(true);
    let mut ring = Ring::new(&mut queue, &host.memory, &yielding);
    assert!(ring.pop().unwrap().is_none());
    yielding.store(false, Ordering::SeqCst);
    assert_eq!(ring.pop().unwrap().map(|chain| chain.writable.len()), Some(4096), "it is still there");
    assert_eq!(
        ring.finish().unwrap(),
        Outcome { interrupt: false, again: true },
        "it is to be looked at again"
    );
}

#[test]
fn a_driver_need_not_notify_while_the_device_works() {
    let (host, mut queue) = one_request();
    let yielding = AtomicBool::new(false);
    let quiet = || host.read(USED, 2) == (VRING_USED_F_NO_NOTIFY as u16).to_le_bytes();
    let mut ring = Ring::new(&mut queue, &host.memory, &yielding);
    assert!(!quiet());
    let chain = ring.pop().unwrap().unwrap();
    assert!(quiet());
    ring.push(chain.head, 7).unwrap();
    assert!(ring.pop().unwrap().is_none());
    assert!(!quiet());
    assert_eq!(ring.finish().unwrap(), Outcome { interrupt: true, again: false });
    assert_eq!(host.read(USED, 12), [0, 0, 1, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
}
