//! Drivers that break the protocol: the device asks for a reset, and works after it.

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::*;

use super::block::disk;
use super::driver::*;
use crate::config::CacheType;

const INDIRECT: u32 = VRING_DESC_F_INDIRECT;
const WRITE: u32 = VRING_DESC_F_WRITE;

fn needs_reset(driver: &Driver) -> bool {
    driver.get(VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET != 0
}

/// Reads the first sector.
fn works(driver: &mut Driver, host: &Host) {
    driver.start(u64::MAX);
    host.write(DATA, &[0; 16]);
    let written =
        driver.request(0, &[readable(DATA, 16), writable(DATA + 512, 512), writable(DATA + 4096, 1)]);
    assert_eq!(
        (written, host.read(DATA + 512, 512), host.read(DATA + 4096, 1)),
        (513, vec![1; 512], vec![0])
    );
}

#[test]
fn chains_that_cannot_be_followed_end_in_a_reset_and_not_in_a_hang() {
    let (file, block) = disk(&[[1; 512]; 8].concat(), CacheType::Writeback, false);
    let host = Host::new(crate::virtio::Devices { blocks: vec![block], ..Default::default() });
    let table = DATA + 0x10_0000;
    let piece = |address, bytes, flags| Piece { address, bytes, flags };
    type Do<'a> = Box<dyn Fn(&mut Driver) + 'a>;
    let chain = |pieces: Vec<Piece>| -> Do { Box::new(move |driver| _ = driver.offer(0, &pieces)) };
    let cases: Vec<(&str, Do)> = vec![
        ("no place for a status", chain(vec![readable(DATA, 16)])),
        ("no header", chain(vec![readable(DATA, 15), writable(DATA + 512, 1)])),
        ("nothing at all", chain(vec![readable(DATA, 0)])),
        ("a buffer beyond memory", chain(vec![readable(MEMORY, 16), writable(DATA, 1)])),
        (
            "a buffer across the end of memory",
            chain(vec![readable(DATA, 16), writable(MEMORY - 8, 512), writable(DATA, 1)]),
        ),
        ("a buffer at the end of all addresses", chain(vec![readable(u64::MAX - 7, 16), writable(DATA, 1)])),
        ("readable after writable", chain(vec![writable(DATA, 512), readable(DATA, 16), writable(DATA, 1)])),
        (
            "more than 4 GiB",
            chain(
                vec![writable(0, MEMORY as u32); 127]
                    .into_iter()
                    .chain([writable(0, MEMORY as u32), writable(0, u32::MAX)])
                    .take(128)
                    .collect(),
            ),
        ),
        (
            "a chain that bites its tail",
            Box::new(|driver| {
                let table = driver.rings[0].descriptors;
                driver.describe(table, 0, readable(DATA, 16), Some(1));
                driver.describe(table, 1, writable(DATA, 512), Some(1));
                driver.make_available(0, 0);
            }),
        ),
        (
            "a next descriptor that is not in the table",
            Box::new(|driver| {
                driver.describe(driver.rings[0].descriptors, 0, readable(DATA, 16), Some(SIZE));
                driver.make_available(0, 0);
            }),
        ),
        ("a head that is not in the table", Box::new(|driver| driver.make_available(0, SIZE))),
        (
            "more requests than the queue holds",
            Box::new(|driver| {
                driver.rings[0].next_avail = SIZE + 1;
                driver.make_available(0, 0);
            }),
        ),
        ("an indirect table of odd length", chain(vec![piece(table, 40, INDIRECT)])),
        ("an empty indirect table", chain(vec![piece(table, 0, INDIRECT)])),
        ("an indirect table beyond memory", chain(vec![piece(MEMORY, 64, INDIRECT)])),
        (
            "an indirect table in an indirect table",
            Box::new(|driver| {
                driver.describe(table, 0, piece(table, 32, INDIRECT), None);
                driver.offer(0, &[piece(table, 32, INDIRECT)]);
            }),
        ),
        (
            "an endless indirect table",
            Box::new(|driver| {
                driver.describe(table, 0, piece(DATA, 1, WRITE), Some(0));
                driver.offer(0, &[piece(table, 65535 * 16, INDIRECT)]);
            }),
        ),
    ];
    for (what, case) in cases {
        let mut driver = host.driver(0);
        works(&mut driver, &host);
        driver.start(u64::MAX);
        case(&mut driver);
        driver.kick(0);
        driver.wait_for_config(what);
        assert!(needs_reset(&driver), "{what}");
        // It rests until then.
        driver.kick(0);
        driver.set(VIRTIO_MMIO_STATUS, 0xf);
        assert_eq!(driver.interrupted(NOTHING / 10), None, "{what}");
        assert!(needs_reset(&driver), "{what}");
    }
    works(&mut host.driver(0), &host);
    assert_eq!(std::fs::read(file.path()).unwrap(), [1; 4096]);
}

#[test]
fn queues_that_cannot_be_are_refused_when_the_driver_starts() {
    let (_file, block) = disk(&[[1; 512]; 8].concat(), CacheType::Writeback, false);
    let host = Host::new(crate::virtio::Devices { blocks: vec![block], ..Default::default() });
    type Spoil = fn(&mut Ring);
    let cases: [(&str, Spoil); 10] = [
        ("no entries", |ring| ring.size = 0),
        ("too many entries", |ring| ring.size = 512),
        ("more entries than 16 bits say", |ring| ring.size = 0x1_0080),
        ("entries that are no power of two", |ring| ring.size = 100),
        ("odd descriptors", |ring| ring.descriptors += 8),
        ("odd available ring", |ring| ring.avail += 1),
        ("odd used ring", |ring| ring.used += 2),
        ("descriptors beyond memory", |ring| ring.descriptors = MEMORY + 0x1000_0000),
        ("available ring across the end", |ring| ring.avail = MEMORY - 16),
        ("used ring at the end of all addresses", |ring| ring.used = !0xf),
    ];
    for (what, spoil) in cases {
        let mut driver = host.driver(0);
        let good = driver.rings[0].clone();
        assert!(driver.negotiate(VERSION_1));
        spoil(&mut driver.rings[0]);
        // Written where the ring would be, if it is.
        let spoiled = driver.rings[0].clone();
        driver.rings[0] = good.clone();
        driver.rings.truncate(1);
        set_up(&driver, &spoiled);
        assert!(needs_reset(&driver), "{what}");
        driver.wait_for_config(what);
        driver.kick(0);
        assert_eq!(driver.interrupted(NOTHING / 10), None, "{what}");
    }
    works(&mut host.driver(0), &host);
}

fn set_up(driver: &Driver, ring: &Ring) {
    driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.set(VIRTIO_MMIO_QUEUE_NUM, ring.size);
    for (register, address) in [
        (VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.avail),
        (VIRTIO_MMIO_QUEUE_USED_LOW, ring.used),
    ] {
        driver.set(register, address as u32);
        driver.set(register + 4, (address >> 32) as u32);
    }
    driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
    driver.set(VIRTIO_MMIO_STATUS, 0xf);
}

#[test]
fn rings_that_lie_over_one_another_harm_only_the_guest() {
    let (_file, block) = disk(&[[1; 512]; 8].concat(), CacheType::Writeback, false);
    let host = Host::new(crate::virtio::Devices { blocks: vec![block], ..Default::default() });
    let mut driver = host.driver(0);
    let good = driver.rings[0].clone();
    assert!(driver.negotiate(VERSION_1 | EVENT_IDX));
    let mut overlaid = good.clone();
    (overlaid.avail, overlaid.used) = (good.descriptors + 0x100, good.descriptors + 0x100);
    set_up(&driver, &overlaid);
    for value in [1_u16, 2, 100, 300, 0xffff] {
        host.write(good.descriptors + 0x102, &value.to_le_bytes());
        driver.kick(0);
    }
    host.virtio.park().unwrap();
    host.virtio.unpark();
    works(&mut driver, &host);
}
