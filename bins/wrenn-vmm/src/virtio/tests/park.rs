//! Standing still, saving and restoring.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use super::balloon::{balloon, write_pages};
use super::block::disk;
use super::driver::*;
use crate::config::CacheType;
use crate::virtio::{Devices, Error, Rng, VirtioState};

/// Balloon, disk and entropy.
fn devices(file: Option<&std::path::Path>) -> (Option<tempfile::NamedTempFile>, Devices) {
    let (file, block) = match file {
        Some(path) => (
            None,
            crate::virtio::Block::open(&super::block::drive(path, CacheType::Writeback, false)).unwrap(),
        ),
        None => {
            let (file, block) = disk(&[7; 8192], CacheType::Writeback, false);
            (Some(file), block)
        }
    };
    (file, Devices { blocks: vec![block], rng: Some(Rng::new()), ..balloon(1000) })
}

#[test]
fn what_is_asked_while_parked_is_done_after_even_if_the_notification_is_lost() {
    let host = Host::new(Devices { rng: Some(Rng::new()), ..Devices::default() });
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    for notify in [true, false] {
        host.virtio.park().unwrap();
        host.virtio.park().unwrap();
        driver.settle();
        host.write(DATA, &[0; 64]);
        driver.ask_after(0, 1);
        driver.offer(0, &[writable(DATA, 64)]);
        if notify {
            driver.kick(0);
        }
        host.take_dirty();
        assert_eq!(driver.interrupted(NOTHING), None);
        assert_eq!(host.take_dirty(), Vec::<u64>::new());
        assert_eq!(host.read(DATA, 64), [0; 64]);
        host.virtio.unpark();
        host.virtio.unpark();
        driver.wait(0, 1);
        assert_ne!(host.read(DATA, 64), [0; 64]);
    }
}

#[test]
fn a_busy_driver_does_not_keep_the_io_thread_from_parking() {
    let host = Host::new(Devices { rng: Some(Rng::new()), ..Devices::default() });
    let mut driver = host.driver(0);
    driver.start(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Whatever comes back is made available again at once, for ever.
            (0..SIZE).for_each(|_| _ = driver.offer(0, &[writable(DATA, 4096)]));
            while !stop.load(Ordering::SeqCst) {
                driver.kick(0);
                for (head, _) in driver.returned(0) {
                    driver.make_available(0, head);
                }
            }
        });
        let watch = host.driver(0);
        let mut last = 0;
        for _ in 0..50 {
            while watch.used_index(0) == last {
                std::thread::yield_now();
            }
            host.virtio.park().unwrap();
            let before = host.read(DATA, 4096);
            last = watch.used_index(0);
            (0..20).for_each(|_| std::thread::yield_now());
            assert!(watch.used_index(0) == last && host.read(DATA, 4096) == before);
            host.virtio.unpark();
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_thread_that_waits_for_a_page_is_reported_and_goes_on() {
    let host = Host::new(balloon(0));
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    let pages = write_pages(&host, DATA, &[5000]);
    let blocked = host.discard.blocked.lock().unwrap();
    driver.ask_after(0, 1);
    driver.offer(0, &[pages]);
    driver.kick(0);
    // Once it is in there, it takes the notification no more.
    let error = loop {
        match host.virtio.io.park_within(Duration::from_millis(100)) {
            Ok(()) => host.virtio.unpark(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Busy(_)), "{error}");
    // The API does not wait for it.
    assert_eq!(host.virtio.balloon().unwrap().target(), 3);
    assert!(matches!(host.virtio.balloon().unwrap().statistics(), Err(Error::StatisticsDisabled)));
    drop(blocked);
    assert_eq!(driver.wait(0, 1), [(0, 0)]);
    host.virtio.park().unwrap();
}

#[test]
fn a_restored_machine_goes_on_with_the_requests_that_were_under_way() {
    let (file, first) = devices(None);
    let old = Host::new(first);
    let mut balloon = old.driver(0);
    balloon.start(u64::MAX);
    balloon.set_config(4, &256_u32.to_le_bytes());
    let mut disk = old.driver(1);
    disk.start(u64::MAX);
    let mut rng = old.driver(2);
    rng.start(0);

    // Some done before, a statistics buffer that the device keeps, an interrupt that was never looked at.
    for _ in 0..5 {
        rng.request(0, &[writable(DATA, 16)]);
    }
    old.write(DATA + 0x1000, &[&4_u16.to_le_bytes()[..], &99_u64.to_le_bytes()].concat());
    balloon.offer(2, &[readable(DATA + 0x1000, 10)]);
    balloon.kick(2);
    while !old.virtio.balloon().unwrap().statistics().unwrap().guest.contains_key("free_memory") {
        std::thread::yield_now();
    }
    old.virtio.park().unwrap();
    old.virtio.balloon().unwrap().set_target(2).unwrap();
    // Under way: a write, a read of it, random bytes, a page for the balloon.
    old.write(DATA + 0x2000, &[&1_u32.to_le_bytes()[..], &[0; 4], &9_u64.to_le_bytes()].concat());
    old.write(DATA + 0x3000, &[&0_u32.to_le_bytes()[..], &[0; 4], &9_u64.to_le_bytes()].concat());
    old.write(DATA + 0x4000, &[0x5a; 512]);
    disk.offer(0, &[readable(DATA + 0x2000, 16), readable(DATA + 0x4000, 512), writable(DATA + 0x2100, 1)]);
    disk.offer(0, &[readable(DATA + 0x3000, 16), writable(DATA + 0x5000, 512), writable(DATA + 0x3100, 1)]);
    disk.ask_after(0, 2);
    rng.offer(0, &[writable(DATA + 0x6000, 64)]);
    let pages = write_pages(&old, DATA + 0x7000, &[6000, 6001]);
    balloon.offer(0, &[pages]);
    balloon.ask_after(0, 1);

    let state = serde_json::to_string(&old.virtio.save().unwrap()).unwrap();
    let image = old.read(0, MEMORY as usize);
    let rings = [balloon.rings.clone(), disk.rings.clone(), rng.rings.clone()];
    let features = [balloon.features, disk.features, rng.features];
    drop((balloon, disk, rng));
    let path = file.as_ref().unwrap().path().to_owned();
    assert_eq!(std::fs::read(&path).unwrap(), [7; 8192]);
    drop(old);

    let memory = memory();
    memory.write_slice(&image, GuestAddress(0)).unwrap();
    let new = Host::parked(devices(Some(&path)).1, memory);
    new.take_dirty();
    let state: VirtioState = serde_json::from_str(&state).unwrap();
    new.virtio.restore(&state).unwrap();
    assert_eq!(new.take_dirty(), Vec::<u64>::new(), "restoring writes nothing");
    assert_eq!(new.virtio.save().unwrap(), state, "and loses nothing");
    let handle = new.virtio.balloon().unwrap();
    let statistics = handle.statistics().unwrap();
    assert_eq!((statistics.target_mib, statistics.actual_mib, statistics.guest["free_memory"]), (2, 1, 99));
    handle.set_target(4).unwrap();
    let mut drivers: Vec<Driver> = (0..3).map(|slot| new.driver(slot)).collect();
    for ((driver, rings), features) in drivers.iter_mut().zip(rings).zip(features) {
        (driver.rings, driver.features) = (rings, features);
    }
    let [balloon, disk, rng] = &mut drivers[..] else { unreachable!() };
    assert_eq!(rng.interrupted(NOTHING), None, "parked");
    assert_eq!(rng.returned(0), []);

    new.virtio.unpark();
    let status = balloon.interrupted(LIMIT).unwrap();
    assert_ne!(status & VIRTIO_MMIO_INT_CONFIG, 0, "the interrupt that was not looked at comes again");
    assert_eq!(disk.wait(0, 2).iter().map(|done| done.1).collect::<Vec<_>>(), [1, 513]);
    assert_eq!(new.read(DATA + 0x5000, 512), [0x5a; 512]);
    assert_eq!((new.read(DATA + 0x2100, 1), new.read(DATA + 0x3100, 1)), (vec![0], vec![0]));
    assert_eq!(std::fs::read(&path).unwrap()[9 * 512..10 * 512], [0x5a; 512]);
    assert_eq!(rng.wait(0, 1)[0].1, 64);
    assert_ne!(new.read(DATA + 0x6000, 64), [0; 64]);
    balloon.wait(0, 1);
    assert_eq!(*new.discard.ranges.lock().unwrap(), [(6000 << 12, 2 << 12)]);
    assert_eq!(balloon.returned(2), [], "the statistics buffer is still the device's");
    new.virtio.balloon().unwrap().set_interval(1).unwrap();
    balloon.wait(2, 1);
}

#[test]
fn a_state_of_other_devices_is_refused() {
    let (_file, mine) = devices(None);
    let host = Host::new(mine);
    host.driver(1).start(u64::MAX);
    host.virtio.park().unwrap();
    let state = serde_json::to_value(host.virtio.save().unwrap()).unwrap();
    let spoil = |pointer: &str, value: serde_json::Value| {
        let mut spoiled = state.clone();
        *spoiled.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} in {state}")) = value;
        let (_file, other) = devices(None);
        let host = Host::parked(other, memory());
        host.virtio.restore(&serde_json::from_value(spoiled).unwrap()).map_err(|error| error.to_string())
    };
    spoil("/devices/1/queue_select", 3.into()).unwrap();
    let none = serde_json::json!([]);
    for (pointer, value, word) in [
        ("/devices", none.clone(), "0 devices"),
        ("/devices/1/kind", 1.into(), "device 1"),
        ("/devices/1/queues", none, "queues"),
        ("/devices/1/driver_features", serde_json::json!(1_u64 << 32 | 1 << 20), "features"),
        ("/devices/1/driver_features", 0.into(), "features"),
        ("/devices/1/queues/0/size", 3.into(), "invalid"),
        ("/devices/1/queues/0/descriptors", (MEMORY * 2).into(), "memory"),
        ("/devices/0/own/Balloon/interval_s", 0.into(), "statistics"),
        ("/devices/1/own", serde_json::to_value(&state["devices"][0]["own"]).unwrap(), "another kind"),
    ] {
        let error = spoil(pointer, value).unwrap_err();
        assert!(error.to_lowercase().contains(word), "{pointer}: {error}");
    }
}
