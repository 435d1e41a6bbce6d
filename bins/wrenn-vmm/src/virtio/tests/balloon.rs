//! The balloon.

use std::collections::BTreeMap;
use std::time::Instant;

use virtio_bindings::virtio_mmio::*;

use super::driver::*;
use crate::config;
use crate::virtio::{Balloon, Devices, Error};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;

pub fn balloon(stats_polling_interval_s: u64) -> Devices {
    let config = config::Balloon { amount_mib: 3, deflate_on_oom: true, stats_polling_interval_s };
    Devices { balloon: Some(Balloon::new(&config)), ..Devices::default() }
}

pub fn write_pages(host: &Host, address: u64, pages: &[u32]) -> Piece {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    host.write(address, &bytes);
    readable(address, bytes.len() as u32)
}

#[test]
fn neighbouring_pages_of_several_requests_are_taken_in_one_piece() {
    let host = Host::new(balloon(0));
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    host.virtio.park().unwrap();
    let first = write_pages(&host, DATA, &[5000, 5002, 5001]);
    let (part, second) =
        (write_pages(&host, DATA + 100, &[5004]), write_pages(&host, DATA + 200, &[5003, 7000, 5001]));
    driver.ask_after(INFLATE, 2);
    driver.offer(INFLATE, &[first]);
    driver.offer(INFLATE, &[part, second]);
    host.virtio.unpark();
    assert_eq!(driver.wait(INFLATE, 2), [(0, 0), (1, 0)]);
    assert_eq!(*host.discard.ranges.lock().unwrap(), [(5000 << 12, 5 << 12), (7000 << 12, 1 << 12)]);
}

#[test]
fn a_page_goes_back_to_the_guest_only_after_it_was_taken() {
    let host = Host::new(balloon(0));
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    let pages = write_pages(&host, DATA, &[5000]);
    let blocked = host.discard.blocked.lock().unwrap();
    driver.ask_after(INFLATE, 1);
    driver.offer(INFLATE, &[pages]);
    driver.kick(INFLATE);
    assert_eq!(driver.interrupted(NOTHING), None);
    assert_eq!(driver.returned(INFLATE), []);
    drop(blocked);
    assert_eq!(driver.wait(INFLATE, 1), [(0, 0)]);
    assert_eq!(*host.discard.ranges.lock().unwrap(), [(5000 << 12, 1 << 12)]);
}

#[test]
fn pages_that_are_no_memory_harm_nothing() {
    let host = Host::new(balloon(0));
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    let pages = write_pages(&host, DATA, &[u32::MAX, 0x10_0000, 0]);
    assert_eq!(driver.request(INFLATE, &[pages]), 0);
    assert_eq!(
        driver.request(INFLATE, &[readable(DATA, 3), writable(DATA, 100)]),
        0,
        "less than a page number"
    );
    assert_eq!(host.discard.ranges.lock().unwrap().len(), 3);
    driver.ask_after(INFLATE, 1);
    driver.offer(INFLATE, &[readable(DATA, 1 << 20)]);
    driver.kick(INFLATE);
    driver.wait_for_config("more than any driver sends");
}

#[test]
fn deflating_takes_nothing() {
    let host = Host::new(balloon(0));
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    let pages = write_pages(&host, DATA, &[5000, 5001]);
    assert_eq!(driver.request(DEFLATE, &[pages]), 0);
    assert!(host.discard.ranges.lock().unwrap().is_empty());
}

#[test]
fn a_target_reaches_the_guest_and_what_the_guest_reached_is_told() {
    let host = Host::new(balloon(1));
    let handle = host.virtio.balloon().unwrap();
    let mut driver = host.driver(0);
    assert_eq!(driver.offered() & 0xff_ffff, 0b110, "statistics and deflate-on-oom");
    assert!(matches!(handle.set_target(4), Err(Error::NotActive)));
    driver.start(u64::MAX);
    assert_eq!(driver.config(0, 8), [0, 3, 0, 0, 0, 0, 0, 0], "768 pages are wanted, none is there");
    let generation = driver.get(VIRTIO_MMIO_CONFIG_GENERATION);

    handle.set_target(4).unwrap();
    driver.wait_for_config("a new target");
    assert_ne!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.config(0, 4), 1024_u32.to_le_bytes());
    driver.set_config(4, &513_u32.to_le_bytes());
    driver.set_config(0, &9_u32.to_le_bytes());
    let statistics = handle.statistics().unwrap();
    let sizes =
        [statistics.target_pages, statistics.actual_pages, statistics.target_mib, statistics.actual_mib];
    assert_eq!(sizes, [1024, 513, 4, 2]);
    assert_eq!((handle.target(), handle.config().amount_mib), (4, 4));

    assert!(matches!(handle.set_target((MEMORY >> 20) + 1), Err(Error::TooMuchMemory(32))));
    assert!(matches!(handle.set_target(u64::MAX), Err(Error::TooMuchMemory(32))));
    assert_eq!(handle.target(), 4);
    driver.set(VIRTIO_MMIO_STATUS, 0);
    assert!(matches!(handle.set_target(5), Err(Error::NotActive)));
}

#[test]
fn statistics_are_asked_for_in_time_and_told_by_their_names() {
    let host = Host::new(balloon(1));
    let handle = host.virtio.balloon().unwrap();
    let mut driver = host.driver(0);
    driver.start(u64::MAX);
    let report = |tags: &[(u16, u64)]| {
        let bytes: Vec<u8> = tags
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        host.write(DATA, &bytes);
        readable(DATA, bytes.len() as u32)
    };
    let piece = report(&[(4, 111), (5, 222 << 32), (60000, 1), (0, 0)]);
    driver.ask_after(STATISTICS, 1);
    driver.offer(STATISTICS, &[piece]);
    let asked = Instant::now();
    driver.kick(STATISTICS);
    assert_eq!(driver.wait(STATISTICS, 1), [(0, 0)], "the buffer comes back to be filled again");
    assert!(asked.elapsed().as_millis() > 500, "not before its time");
    let told = BTreeMap::from([("free_memory", 111), ("total_memory", 222 << 32), ("swap_in", 0)]);
    assert_eq!(handle.statistics().unwrap().guest, told);
    let json = serde_json::to_value(handle.statistics().unwrap()).unwrap();
    assert_eq!(json["target_mib"], 3);
    assert_eq!(json["free_memory"], 111);

    let piece = report(&[(4, 333), (10, 5)]);
    driver.offer(STATISTICS, &[piece]);
    driver.kick(STATISTICS);
    driver.wait(STATISTICS, 1);
    assert_eq!(handle.statistics().unwrap().guest["free_memory"], 333);
    assert_eq!(handle.statistics().unwrap().guest["oom_kill"], 5);

    assert!(matches!(handle.set_interval(0), Err(Error::StatisticsChange)));
    handle.set_interval(1000).unwrap();
    assert_eq!(handle.config().stats_polling_interval_s, 1000);
    driver.offer(STATISTICS, &[report(&[(4, 1)])]);
    driver.offer(STATISTICS, &[report(&[(4, 2), (5, 3)])]);
    driver.kick(STATISTICS);
    driver.wait(STATISTICS, 1);
    while driver.interrupted(NOTHING).is_some() {}
    assert_eq!(driver.returned(STATISTICS), [], "a surplus buffer comes back, the other stays");
}

#[test]
fn without_an_interval_there_are_no_statistics() {
    let host = Host::new(balloon(0));
    let handle = host.virtio.balloon().unwrap();
    let driver = host.driver(0);
    assert_eq!(driver.offered() & 0xff_ffff, 0b100);
    assert!(matches!(handle.statistics(), Err(Error::StatisticsDisabled)));
    assert!(matches!(handle.set_interval(1), Err(Error::StatisticsChange)));
}
