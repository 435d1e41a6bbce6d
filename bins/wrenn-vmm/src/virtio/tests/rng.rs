//! Entropy.

use std::collections::HashSet;

use super::driver::*;
use crate::memory::PAGE;
use crate::virtio::{Devices, Rng};

#[test]
fn every_byte_is_random_and_exactly_the_pages_written_are_marked() {
    let host = Host::new(Devices { rng: Some(Rng::new()), ..Devices::default() });
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    host.virtio.park().unwrap();
    driver.ask_after(0, 1);
    driver.offer(
        0,
        &[writable(DATA + 100, 1000), writable(DATA + 5 * PAGE - 8, 16), writable(DATA + 9 * PAGE, 0)],
    );
    host.take_dirty();
    host.virtio.unpark();
    assert_eq!(driver.wait(0, 1), [(0, 1016)]);
    host.virtio.park().unwrap();
    let data = DATA / PAGE;
    // The wait has written its wish for the next interrupt.
    let dirty: Vec<u64> =
        host.take_dirty().into_iter().filter(|page| *page != driver.rings[0].avail / PAGE).collect();
    assert_eq!(dirty, [driver.rings[0].used_page(), data, data + 4, data + 5]);
    let bytes = host.read(DATA + 100, 1000);
    assert!(bytes.iter().collect::<HashSet<_>>().len() > 200, "{bytes:?}");
    assert_ne!(host.read(DATA + 5 * PAGE - 8, 8), host.read(DATA + 5 * PAGE, 8));
    assert_eq!(host.read(DATA, 100), [0; 100]);
    assert_eq!(host.read(DATA + 1100, 100), [0; 100]);
}

#[test]
fn a_greedy_request_gets_a_part() {
    let host = Host::new(Devices { rng: Some(Rng::new()), ..Devices::default() });
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    assert_eq!(driver.request(0, &[writable(DATA, 1 << 20)]), 64 << 10);
    assert_eq!(driver.request(0, &[readable(DATA, 100)]), 0, "nothing to write to");
}
