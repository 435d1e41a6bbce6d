//! Frames that are not finished: checksums yet to be made, segments yet to be cut.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use virtio_bindings::virtio_net::*;

use super::driver::*;
use super::wire::*;

/// Bytes of the headers of [`tcp_frame`].
const TCP_HEADERS: usize = 14 + 20 + 20;

/// `virtio_net_hdr` of a [`tcp_frame`]: the checksum is yet to be made, from byte 34, and goes 16 bytes behind that; to be
/// cut into pieces of 1448 bytes.
const TCP_HEADER: [u8; 10] = [1, 1, TCP_HEADERS as u8, 0, 0xa8, 0x05, 34, 0, 16, 0];

/// IPv4 and TCP: more than an interface sends at once.
fn tcp_frame(payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16::to_be_bytes((TCP_HEADERS - 14 + payload.len()) as u16);
    let ethernet = [0x02, 0xfc, 0, 0, 0, 9, 0x02, 0xfc, 0, 0, 0, 5, 0x08, 0x00];
    let ip = [0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let tcp = [4, 0, 8, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    [&ethernet[..], &ip, &tcp, payload].concat()
}

fn payload() -> Vec<u8> {
    (0..20_000_u32).map(|index| (index * 13) as u8).collect()
}

#[test]
fn as_root_a_frame_to_be_segmented_leaves_whole() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let mut driver = host.driver(0);
        driver.start(u64::MAX);
        let wanted = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO4;
        assert_eq!(driver.features & wanted, wanted);
        let (payload, frame) = (payload(), tcp_frame(&payload()));
        host.write(DATA, &[&TCP_HEADER[..], &[0; 2], &frame].concat());
        driver.request(TX, &[readable(DATA, 12 + frame.len() as u32)]);
        assert!(wait_readable(wire.as_fd(), LIMIT));
        let mut got = vec![0; 70_000];
        let bytes = io::Read::read(&mut &wire, &mut got).unwrap();
        assert_eq!(bytes, frame.len());
        assert!(got[TCP_HEADERS..bytes] == payload);
    });
}

#[test]
fn as_root_a_frame_to_be_segmented_arrives_whole_only_at_a_driver_that_takes_it_so() {
    with_tap(|| {
        let host = host();
        let wire = wire();
        let on: libc::c_int = 1;
        let size = std::mem::size_of_val(&on) as libc::socklen_t;
        let (fd, pointer) = (wire.as_raw_fd(), (&raw const on).cast());
        // SAFETY: PACKET_VNET_HDR takes an int, which lives through the call.
        let set = unsafe { libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, pointer, size) };
        Errno::result(set).unwrap();
        let (payload, frame) = (payload(), tcp_frame(&payload()));
        let place = |head: u16| DATA + u64::from(head) * 0x1_1000;
        for (features, pieces) in [(u64::MAX, 1), (0, 20_000_usize.div_ceil(1448)), (u64::MAX, 1)] {
            let mut driver = host.driver(0);
            driver.start(features);
            driver.ask_after(RX, pieces as u16);
            (0..20).for_each(|head| _ = driver.offer(RX, &[writable(place(head), 65562)]));
            driver.kick(RX);
            // The io thread tells the tap; once it has done a request it has.
            driver.request(TX, &[readable(DATA, 1)]);
            send(&wire, &[&TCP_HEADER[..], &frame].concat());
            let mut got: Vec<u8> = Vec::new();
            for (head, bytes) in driver.wait(RX, pieces) {
                let piece = host.read(place(head), bytes as usize);
                let unfinished = pieces == 1;
                assert_eq!(
                    (piece[0] & 1 == 1, piece[1] == 1),
                    (unfinished, unfinished),
                    "checksum, segments"
                );
                got.extend(&piece[12 + TCP_HEADERS..]);
            }
            assert!(got == payload);
        }
    });
}
