//! A guest: whoever holds the tap. It has the addresses that every guest has.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use sys::netns;
use sys::tap::{Tap, Tun};

use super::LIMIT;
use super::packet::{Datagram, Frame, Mac, parse, udp, who_has};

pub const GUEST_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
const GUEST_MAC: Mac = [0x02, 0xfc, 0, 0, 0, 5];
const GATEWAY_MAC: Mac = [0x02, 0xfc, 0, 0, 0, 6];

pub struct Guest(Tap);

impl Guest {
    /// Attaches to a slot's tap, as a VMM does, and waits for the gateway to answer: the kernel needs a moment to see that
    /// there is somebody, and drops what it would send before.
    pub fn attach(slot: u16) -> Self {
        let file = File::open(format!("/run/netns/wrenn-ns-{slot}")).expect("the slot's namespace");
        let guest = Self(netns::on_own_thread(|| {
            netns::enter(&file).expect("enter the slot's namespace");
            Tun::open().and_then(|tun| tun.attach("tap0")).expect("attach to tap0")
        }));
        guest.find_gateway();
        guest
    }

    /// Sends from the guest's address, to the gateway that it knows from before it was frozen: without asking.
    pub fn send(&self, port: u16, to: SocketAddrV4, data: &[u8]) {
        self.send_from(SocketAddrV4::new(GUEST_IP, port), to, data);
    }

    /// Sends from any address.
    pub fn send_from(&self, from: SocketAddrV4, to: SocketAddrV4, data: &[u8]) {
        let datagram = Datagram { from, to, data: data.to_vec() };
        let frame = udp(GUEST_MAC, GATEWAY_MAC, &datagram);
        self.0.file().write_all(&frame).expect("write to the tap");
    }

    /// Asks for the gateway until it answers, and finds the hardware address that a guest from another slot knows.
    fn find_gateway(&self) {
        let gateway = Ipv4Addr::new(169, 254, 0, 22);
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            self.0.file().write_all(&who_has((GUEST_MAC, GUEST_IP), gateway)).expect("write to the tap");
            while let Some(frame) = self.next(Duration::from_millis(5)) {
                if let Frame::IHave { who: (mac, address) } = frame {
                    assert_eq!((mac, address), (GATEWAY_MAC, gateway));
                    return;
                }
            }
        }
        panic!("the gateway does not answer");
    }

    /// The next datagram that arrives. `None` when none does in time. Nobody has asked before where the guest is.
    pub fn receive(&self, limit: Duration) -> Option<Datagram> {
        let deadline = Instant::now() + limit;
        while let Some(frame) = self.next(deadline.saturating_duration_since(Instant::now())) {
            if let Frame::Udp { from, to, datagram } = frame {
                assert_eq!((from, to), (GATEWAY_MAC, GUEST_MAC));
                return Some(datagram);
            }
        }
        None
    }

    /// The next datagram, which must come.
    pub fn expect(&self) -> Datagram {
        self.receive(LIMIT).expect("a datagram at the tap")
    }

    fn next(&self, limit: Duration) -> Option<Frame> {
        let mut buffer = [0; 2048];
        if !sys::process::readable(self.0.file(), limit).expect("wait for the tap") {
            return None;
        }
        let length = self.0.file().read(&mut buffer).expect("read from the tap");
        Some(parse(&buffer[..length]))
    }
}
