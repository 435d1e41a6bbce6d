//! Ethernet, ARP, IPv4 and UDP, by hand: the test's own eyes and hands at the tap.

use std::net::{Ipv4Addr, SocketAddrV4};

pub type Mac = [u8; 6];

const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const UDP: u8 = 17;

/// A UDP packet with its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub data: Vec<u8>,
}

/// What a frame holds, as far as the tests care.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Somebody says that it has an address.
    IHave {
        who: (Mac, Ipv4Addr),
    },
    Udp {
        from: Mac,
        to: Mac,
        datagram: Datagram,
    },
    Other,
}

pub fn parse(frame: &[u8]) -> Frame {
    let (Some(to), Some(from), Some(kind)) = (mac(frame, 0), mac(frame, 6), frame.get(12..14)) else {
        return Frame::Other;
    };
    match kind {
        _ if kind == ARP && frame.get(20..22) == Some(&[0, 2]) => {
            Frame::IHave { who: (mac(frame, 22).expect("sender"), address(frame, 28)) }
        }
        _ if kind == IPV4 && frame.get(23) == Some(&UDP) => {
            Frame::Udp { from, to, datagram: datagram(&frame[14..]) }
        }
        _ => Frame::Other,
    }
}

/// Asks who has an address.
pub fn who_has(me: (Mac, Ipv4Addr), wanted: Ipv4Addr) -> Vec<u8> {
    let header = [&[0xff; 6][..], &me.0, &ARP].concat();
    // Ethernet, IPv4, lengths 6 and 4, request.
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &me.0, &me.1.octets(), &[0; 6], &wanted.octets()].concat();
    [header, arp].concat()
}

pub fn udp(from: Mac, to: Mac, datagram: &Datagram) -> Vec<u8> {
    let ethernet = [&to[..], &from, &IPV4].concat();
    let length = (8 + datagram.data.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + length).to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, UDP, 0, 0]);
    ip.extend(datagram.from.ip().octets());
    ip.extend(datagram.to.ip().octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut udp = Vec::new();
    udp.extend(datagram.from.port().to_be_bytes());
    udp.extend(datagram.to.port().to_be_bytes());
    udp.extend(length.to_be_bytes());
    // No checksum: UDP over IPv4 may leave it out.
    udp.extend([0, 0]);
    [ethernet, ip, udp, datagram.data.clone()].concat()
}

fn datagram(packet: &[u8]) -> Datagram {
    let header = usize::from(packet[0] & 15) * 4;
    assert_eq!(checksum(&packet[..header]), 0, "the IPv4 header's checksum");
    let udp = &packet[header..];
    let number = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    Datagram {
        from: SocketAddrV4::new(address(packet, 12), number(0)),
        to: SocketAddrV4::new(address(packet, 16), number(2)),
        data: udp[8..usize::from(number(4))].to_vec(),
    }
}

fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..at + 6)?.try_into().ok()
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// RFC 1071: 0 over bytes that hold their own.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
