//! A tap in a network namespace that goes with its test, and the host's side of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use sys::netns;
use sys::tap::{self, Tun};

use super::driver::{Host, LIMIT, wait_readable};
use crate::config::NetworkInterface;
use crate::virtio::{Devices, Net};

/// The tap's name.
pub const TAP: &str = "tap0";
/// The device's queues.
pub const RX: usize = 0;
pub const TX: usize = 1;

pub fn interface(tap: &str, mac: Option<&str>) -> NetworkInterface {
    NetworkInterface { iface_id: "eth0".into(), host_dev_name: tap.into(), guest_mac: mac.map(Into::into) }
}

/// Runs `test` in a network namespace of its own, where there is a tap; or says why it cannot.
pub fn with_tap(test: impl FnOnce() + Send) {
    let skipped = netns::on_own_thread(|| {
        if let Err(error) = netns::unshare_net() {
            return Some(format!("needs root, for a network namespace of its own: {error}"));
        }
        let tun = match Tun::open() {
            Ok(tun) => tun,
            Err(error) => return Some(format!("needs {}: {error}", tap::DEVICE)),
        };
        tun.attach(TAP).unwrap().persist().unwrap();
        // Else the kernel sends frames of its own, to find routers. Where it knows no IPv6, there is no such file.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1");
        test();
        None
    });
    if let Some(reason) = skipped {
        wrenn_tests::skip::here(reason);
    }
}

/// The tap passes frames on when this returns: it has a carrier already. In the other order it would get its queue from
/// a work queue of the kernel, some time later.
pub fn bring_up() {
    let socket = packet_socket();
    // SAFETY: ifreq is made of integers and arrays and unions of them: all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: a socket and a pointer to an ifreq that lives through the call, as SIOCSIFFLAGS wants.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .unwrap();
}

/// A socket for whole frames.
fn packet_socket() -> OwnedFd {
    let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: socket takes integers.
    let fd = Errno::result(unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol)
    });
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd.unwrap()) }
}

/// The host's side of the tap.
pub fn wire() -> File {
    let socket = packet_socket();
    // SAFETY: sockaddr_ll is made of integers and an array: all zeros is a value of it.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as libc::c_ushort;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = if_nametoindex(TAP).unwrap() as libc::c_int;
    let size = std::mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address lives through the call, and its size is its own.
    Errno::result(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) }).unwrap();
    File::from(socket)
}

pub fn send(mut wire: &File, frame: &[u8]) {
    assert_eq!(io::Write::write(&mut wire, frame).unwrap(), frame.len());
}

/// The next frame of ours that arrives on the wire.
pub fn receive(mut wire: &File) -> Vec<u8> {
    loop {
        assert!(wait_readable(wire.as_fd(), LIMIT), "no frame arrives");
        let mut frame = vec![0; 70_000];
        let bytes = io::Read::read(&mut wire, &mut frame).unwrap();
        frame.truncate(bytes);
        if frame[12..14] == [0x88, 0xb5] {
            return frame;
        }
    }
}

pub fn host() -> Host {
    let net = Net::open(&interface(TAP, Some("02:fc:00:00:00:05"))).unwrap();
    bring_up();
    Host::new(Devices { nets: vec![net], ..Devices::default() })
}
