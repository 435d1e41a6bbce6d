//! Network interfaces, on real taps.

use nix::net::if_::if_nametoindex;
use virtio_bindings::virtio_net::*;

use super::driver::*;
use super::wire::*;
use crate::memory::PAGE;
use crate::virtio::{Devices, Error, Net};

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

/// An Ethernet frame of an experimental kind, of `bytes` bytes.
fn frame(seed: u8, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0xfc, 0, 0, 0, 5, 0x02, 0xfc, 0, 0, 0, 9, 0x88, 0xb5];
    frame.extend((14..bytes).map(|index| (index as u8).wrapping_mul(7).wrapping_add(seed)));
    frame
}

/// The header of a frame that is not to be worked on further.
fn header(buffers: u16) -> Vec<u8> {
    [&[0; 10][..], &buffers.to_le_bytes()].concat()
}

#[test]
fn as_root_frames_go_both_ways_byte_for_byte() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(u64::MAX);
        assert_eq!(driver.config(0, 6), [0x02, 0xfc, 0, 0, 0, 5]);

        for (seed, bytes) in [(1, 60), (2, 1514), (3, 200)] {
            let frame = frame(seed, bytes);
            // In pieces: the header, the addresses, the rest on another page.
            host.write(DATA, &header(0));
            host.write(DATA + 100, &frame[..14]);
            host.write(DATA + 3 * PAGE - 20, &frame[14..]);
            let rest = readable(DATA + 3 * PAGE - 20, bytes as u32 - 14);
            assert_eq!(driver.request(TX, &[readable(DATA, 12), readable(DATA + 100, 14), rest]), 0);
            assert_eq!(receive(&wire), frame);
        }
        for (seed, bytes) in [(4, 60), (5, 1514), (6, 200)] {
            let frame = frame(seed, bytes);
            host.take_dirty();
            driver.ask_after(RX, 1);
            driver.offer(RX, &[writable(DATA + 5 * PAGE - 100, 1600)]);
            driver.kick(RX);
            send(&wire, &frame);
            assert_eq!(driver.wait(RX, 1)[0].1, bytes as u32 + 12);
            assert_eq!(host.read(DATA + 5 * PAGE - 100, bytes + 12), [header(1), frame].concat());
            host.virtio.park().unwrap();
            let data = DATA / PAGE;
            let last = (DATA + 5 * PAGE - 100 + 12 + bytes as u64 - 1) / PAGE;
            let written: Vec<u64> = host.take_dirty().into_iter().filter(|page| *page >= data).collect();
            assert_eq!(written, (data + 4..=last).collect::<Vec<_>>());
            host.virtio.unpark();
        }
    });
}

#[test]
fn as_root_a_frame_comes_in_as_many_buffers_as_it_needs_and_waits_for_them() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(u64::MAX);
        let frame = frame(1, 1514);
        driver.ask_after(RX, 3);
        driver.offer(RX, &[writable(DATA, 600)]);
        driver.offer(RX, &[writable(DATA + PAGE, 600)]);
        driver.kick(RX);
        send(&wire, &frame);
        assert_eq!(driver.interrupted(NOTHING), None);
        assert_eq!(driver.returned(RX), [], "two buffers do not hold it");
        driver.offer(RX, &[writable(DATA + 2 * PAGE, 100), writable(DATA + 3 * PAGE, 500)]);
        driver.kick(RX);
        assert_eq!(driver.wait(RX, 3), [(0, 600), (1, 600), (2, 326)]);
        let got = [(0, 600), (1, 600), (2, 100), (3, 226)]
            .map(|(page, bytes)| host.read(DATA + page * PAGE, bytes));
        assert_eq!(got.concat(), [header(3), frame].concat());
    });
}

#[test]
fn as_root_many_frames_arrive_in_order_whatever_the_buffers() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(u64::MAX);
        // 64 buffers of 1000 bytes, offered again as they come back.
        let place = |head: u16| DATA + u64::from(head) * PAGE;
        for head in 0..64 {
            driver.offer(RX, &[writable(place(head), 1000)]);
        }
        driver.kick(RX);
        let mut got: Vec<Vec<u8>> = Vec::new();
        let (mut pending, mut parts): (Vec<u8>, usize) = (Vec::new(), 0);
        for round in 0..20 {
            (0..10).for_each(|index| {
                send(&wire, &frame((round * 10 + index) as u8, 60 + 7 * (round * 10 + index)))
            });
            while got.len() < (round + 1) * 10 {
                driver.ask_after(RX, 1);
                let done = driver.returned(RX);
                if done.is_empty() {
                    assert!(driver.interrupted(LIMIT).is_some());
                }
                for (head, bytes) in done {
                    let part = host.read(place(head), bytes as usize);
                    if parts == 0 {
                        parts = usize::from(u16::from_le_bytes([part[10], part[11]]));
                        pending = part[12..].to_vec();
                    } else {
                        pending.extend(part);
                    }
                    parts -= 1;
                    if parts == 0 {
                        got.push(std::mem::take(&mut pending));
                    }
                    driver.make_available(RX, head);
                }
                driver.kick(RX);
            }
        }
        let sent: Vec<Vec<u8>> = (0..200).map(|index| frame(index as u8, 60 + 7 * index)).collect();
        assert!(got == sent);
    });
}

#[test]
fn as_root_frames_without_buffers_wait_in_the_tap_and_cost_no_time() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(!MERGEABLE);
        let before = io_thread_ticks();
        for seed in 0..10 {
            send(&wire, &frame(seed, 100));
        }
        assert_eq!(driver.interrupted(NOTHING * 5), None);
        assert!(io_thread_ticks() - before <= 3, "the io thread spins");
        driver.ask_after(RX, 10);
        (0..10).for_each(|index| _ = driver.offer(RX, &[writable(DATA + index * PAGE, 1526)]));
        driver.kick(RX);
        driver.wait(RX, 10);
        for seed in 0..10 {
            assert_eq!(host.read(DATA + u64::from(seed) * PAGE, 112), [header(1), frame(seed, 100)].concat());
        }
    });
}

/// CPU time of this process's io thread, in ticks of 10 ms.
fn io_thread_ticks() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).ok());
    let stat = stats.into_iter().find(|stat| stat.contains("(io)")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime: fields 14 and 15 of proc(5), of which the first two are before.
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn as_root_while_parked_frames_wait_in_the_tap() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(u64::MAX);
        driver.ask_after(RX, 1);
        driver.offer(RX, &[writable(DATA, 1600)]);
        driver.kick(RX);
        host.virtio.park().unwrap();
        host.take_dirty();
        send(&wire, &frame(1, 100));
        assert_eq!(driver.interrupted(NOTHING), None);
        assert_eq!(host.take_dirty(), Vec::<u64>::new());
        host.virtio.unpark();
        driver.wait(RX, 1);
        assert_eq!(host.read(DATA, 112), [header(1), frame(1, 100)].concat());
    });
}

#[test]
fn as_root_a_frame_too_large_is_lost_and_the_next_one_arrives() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(!MERGEABLE);
        driver.ask_after(RX, 1);
        driver.offer(RX, &[writable(DATA, 500)]);
        driver.offer(RX, &[writable(DATA + PAGE, 500)]);
        driver.kick(RX);
        send(&wire, &frame(1, 1000));
        send(&wire, &frame(2, 100));
        assert_eq!(driver.wait(RX, 1), [(0, 112)]);
        assert_eq!(host.read(DATA, 112), [header(1), frame(2, 100)].concat());
    });
}

#[test]
fn as_root_what_is_no_frame_is_lost_and_the_next_one_leaves() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(u64::MAX);
        // A header that asks for a checksum beyond the frame.
        host.write(DATA, &[1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        for bytes in [0, 1, 12, 13, 20, 65562, 65563, 1 << 20] {
            assert_eq!(driver.request(TX, &[readable(DATA, bytes)]), 0);
        }
        host.write(DATA, &[header(0), frame(9, 300)].concat());
        driver.request(TX, &[readable(DATA, 312)]);
        assert_eq!(receive(&wire), frame(9, 300));
    });
}

#[test]
fn as_root_a_tap_must_exist_and_be_free() {
    with_tap(|| {
        let error = Net::open(&interface("tap7", None)).unwrap_err();
        assert!(matches!(error, Error::NoTap { .. }), "{error}");
        assert!(if_nametoindex("tap7").is_err(), "it is not made");
        let first = Net::open(&interface(TAP, None)).unwrap();
        let error = Net::open(&interface(TAP, None)).unwrap_err();
        assert!(
            matches!(&error, Error::Tap { source, .. } if source.raw_os_error() == Some(libc::EBUSY)),
            "{error}"
        );
        drop(first);
        let host = Host::new(Devices {
            nets: vec![Net::open(&interface(TAP, None)).unwrap()],
            ..Devices::default()
        });
        assert_eq!(host.driver(0).offered() & 1 << VIRTIO_NET_F_MAC, 0, "without a MAC the driver makes one");
        let error = Net::open(&interface("lo", None)).unwrap_err();
        assert!(matches!(error, Error::Tap { .. }), "{error}");
    });
}

#[test]
fn what_is_no_mac_is_refused() {
    for mac in [
        "",
        "02:fc:00:00:00",
        "02:fc:00:00:00:05:06",
        "2:fc:00:00:00:05",
        "02-fc-00-00-00-05",
        "+2:fc:00:00:00:05",
    ] {
        let error = Net::open(&interface("lo", Some(mac))).unwrap_err();
        assert!(matches!(error, Error::Mac { .. }), "{mac}: {error}");
    }
}
