//! Registers, features, interrupts and resets.

use virtio_bindings::virtio_config::*;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::*;

use super::driver::*;
use crate::config;
use crate::virtio::{Balloon, Devices, Rng};

fn rng() -> Devices {
    Devices { rng: Some(Rng::new()), ..Devices::default() }
}

/// Whether the device does a request.
fn works(driver: &mut Driver, host: &Host) -> bool {
    host.write(DATA, &[0; 64]);
    driver.request(0, &[writable(DATA, 64)]) == 64 && host.read(DATA, 64) != [0; 64]
}

#[test]
fn a_driver_finds_the_device_by_its_registers() {
    let balloon = config::Balloon { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 0 };
    let host = Host::new(Devices { balloon: Some(Balloon::new(&balloon)), ..rng() });
    assert_eq!(
        host.virtio.slots().iter().map(|slot| slot.base).collect::<Vec<_>>(),
        [0xc000_0000, 0xc000_1000]
    );
    for (slot, kind) in [(0, 5), (1, 4)] {
        let driver = host.driver(slot);
        assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(driver.get(VIRTIO_MMIO_VERSION), 2);
        assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_ID), kind);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
        let ring = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        assert_eq!(driver.offered() & !0xff_ffff, ring);
    }
    let driver = host.driver(0);
    for (queue, entries) in [(0, 256), (1, 256), (2, 0), (u32::MAX, 0)] {
        driver.set(VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), entries);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
    }
    assert_eq!(driver.get(VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
}

#[test]
fn accesses_of_odd_widths_and_places_do_nothing() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    for offset in 0..0x200 {
        for bytes in [1, 2, 3, 8] {
            if !(0x4d..0x54).contains(&offset) {
                host.bus.write(driver.base + offset, &[0; 8][..bytes]);
            }
            host.bus.read(driver.base + offset, &mut [0; 8][..bytes]);
        }
    }
    assert_eq!(driver.config(0xefd, 3), [0; 3], "past its end the configuration space reads zero");
    assert!(works(&mut driver, &host));
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_agreed_to() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    assert!(!driver.negotiate(VERSION_1 | 1));
    assert!(!driver.negotiate(EVENT_IDX));
    assert_eq!(driver.start_queues() & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    driver.offer(0, &[writable(DATA, 8)]);
    driver.kick(0);
    assert_eq!(driver.interrupted(NOTHING), None);
    assert!(driver.negotiate(VERSION_1));
    driver.take(VERSION_1 | 1);
    driver.start_queues();
    assert!(works(&mut driver, &host), "what was agreed to stays");
}

#[test]
fn an_interrupts_reasons_stay_until_each_is_acknowledged() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    driver.start(0);
    driver.offer(0, &[writable(DATA, 8)]);
    driver.kick(0);
    assert_eq!(driver.interrupted(LIMIT), Some(VIRTIO_MMIO_INT_VRING));
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);

    host.virtio.park().unwrap();
    driver.offer(0, &[writable(DATA, 8)]);
    // Too far: the device gives up.
    driver.rings[0].next_avail = driver.rings[0].next_avail.wrapping_add(1000);
    driver.make_available(0, 0);
    host.virtio.unpark();
    assert_eq!(driver.interrupted(LIMIT), Some(VIRTIO_MMIO_INT_CONFIG));
    assert_eq!(driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_eq!(driver.returned(0).len(), 1, "only the first one");
}

#[test]
fn an_interrupt_that_nobody_looked_at_comes_again_when_the_io_thread_goes_on() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    driver.start(0);
    driver.offer(0, &[writable(DATA, 8)]);
    driver.kick(0);
    driver.lose_interrupt();
    host.virtio.park().unwrap();
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
    host.virtio.unpark();
    assert_eq!(driver.interrupted(LIMIT), Some(VIRTIO_MMIO_INT_VRING));
    assert_eq!(driver.returned(0), [(0, 8)]);
}

#[test]
fn acknowledging_one_reason_leaves_the_other() {
    let balloon = config::Balloon { amount_mib: 0, deflate_on_oom: false, stats_polling_interval_s: 0 };
    let host = Host::new(Devices { balloon: Some(Balloon::new(&balloon)), ..Devices::default() });
    let mut driver = host.driver(0);
    driver.start(0);
    host.virtio.balloon().unwrap().set_target(1).unwrap();
    driver.offer(1, &[readable(DATA, 4)]);
    driver.kick(1);
    while driver.returned(1).is_empty() {
        std::thread::yield_now();
    }
    host.virtio.park().unwrap();
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
    driver.set(VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_CONFIG);
}

#[test]
fn after_a_reset_the_device_touches_nothing_and_can_be_started_anew() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    for features in [0, u64::MAX, EVENT_IDX] {
        driver.start(features);
        for _ in 0..3 {
            assert!(works(&mut driver, &host));
        }
        host.virtio.park().unwrap();
        driver.offer(0, &[writable(DATA, 8)]);
        driver.set(VIRTIO_MMIO_STATUS, 0);
        assert_eq!(driver.get(VIRTIO_MMIO_STATUS), 0);
        driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
        assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        host.take_dirty();
        driver.kick(0);
        host.virtio.unpark();
        host.virtio.park().unwrap();
        assert_eq!(host.take_dirty(), Vec::<u64>::new());
        assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        host.virtio.unpark();
    }
}

#[test]
fn a_queue_that_the_driver_takes_back_rests() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    driver.start(0);
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.set(VIRTIO_MMIO_QUEUE_READY, 0);
    driver.offer(0, &[writable(DATA, 8)]);
    driver.kick(0);
    assert_eq!(driver.interrupted(NOTHING), None);
    assert_eq!(driver.returned(0), []);
}

#[test]
fn a_driver_is_interrupted_when_it_asked_to_be_and_not_before() {
    let host = Host::new(rng());
    let mut driver = host.driver(0);
    driver.start(EVENT_IDX);
    driver.ask_after(0, 10);
    for _ in 0..9 {
        driver.offer(0, &[writable(DATA, 1)]);
        driver.kick(0);
    }
    while driver.used_index(0) < 9 {
        std::thread::yield_now();
    }
    assert_eq!(driver.interrupted(NOTHING), None);
    driver.offer(0, &[writable(DATA, 1)]);
    driver.kick(0);
    assert_eq!(driver.interrupted(LIMIT), Some(VIRTIO_MMIO_INT_VRING));
    assert_eq!(driver.returned(0).len(), 10);
}

#[test]
fn a_driver_that_tells_only_when_asked_to_is_never_forgotten() {
    let host = Host::new(rng());
    for features in [0, EVENT_IDX] {
        let mut driver = host.driver(0);
        driver.start(features);
        // Past the point where the rings' 16-bit indices start again.
        let mut done = 0;
        let mut kicks = 0;
        while done < 70_000 {
            let (batch, before) = (1 + done % usize::from(SIZE), driver.rings[0].next_avail);
            driver.ask_after(0, batch as u16);
            for _ in 0..batch {
                driver.offer(0, &[writable(DATA, 1)]);
            }
            if driver.wants_kick(0, before) {
                kicks += 1;
                driver.kick(0);
            }
            done += driver.wait(0, batch).len();
        }
        assert!(kicks > 0);
    }
}
