//! What travels through a slot: packets are sent and looked at where they arrive.

mod support;

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use support::guest::{GUEST_IP, Guest};
use support::{OUTSIDE, PrivateHost, UPLINK, on_private_host, run, socket};

/// Long enough for a packet that does come, under emulation too.
const NOTHING: Duration = Duration::from_millis(500);

fn host_ip(slot: u16) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(10, 11, (slot >> 8) as u8, slot as u8)
}

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddrV4) {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    let SocketAddr::V4(from) = from else { panic!("{from} is not an IPv4 address") };
    (buffer[..length].to_vec(), from)
}

fn receives_nothing(socket: &UdpSocket) {
    socket.set_read_timeout(Some(NOTHING)).unwrap();
    let got = socket.recv_from(&mut [0; 2048]);
    assert!(got.is_err(), "nothing should arrive, not {got:?}");
}

fn local(socket: &UdpSocket) -> SocketAddrV4 {
    let SocketAddr::V4(address) = socket.local_addr().unwrap() else { panic!("IPv4") };
    address
}

#[test]
fn as_root_what_the_host_sends_to_the_slots_address_arrives_at_the_guest_and_the_answer_returns() {
    on_private_host(|host| {
        for slot in [7, 300, 32767] {
            host.create(&format!("s{slot}"), Some(slot));
            let guest = Guest::attach(slot);
            let agent = SocketAddrV4::new(host_ip(slot), 49983);
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.set_read_timeout(Some(support::LIMIT)).unwrap();
            client.send_to(b"are you there?", agent).unwrap();

            let asked = guest.expect();
            assert_eq!(asked.to, SocketAddrV4::new(GUEST_IP, 49983));
            assert_eq!(asked.data, b"are you there?");
            guest.send(49983, asked.from, b"I am.");
            assert_eq!(
                receive(&client),
                (b"I am.".to_vec(), agent),
                "the answer comes from the address that was asked"
            );
        }
    });
}

#[test]
fn as_root_what_the_guest_sends_leaves_under_the_slots_address_and_outside_under_the_hosts() {
    on_private_host(|host| {
        host.create("a", Some(7));
        let guest = Guest::attach(7);

        let here = socket("10.12.0.14".parse().unwrap());
        guest.send(5000, local(&here), b"to the host");
        let (data, from) = receive(&here);
        assert_eq!((data.as_slice(), from), (&b"to the host"[..], SocketAddrV4::new(host_ip(7), 5000)));
        here.send_to(b"from the host", from).unwrap();
        let answer = guest.expect();
        assert_eq!((answer.from, answer.to), (local(&here), SocketAddrV4::new(GUEST_IP, 5000)));
        assert_eq!(answer.data, b"from the host");

        let outside = host.outside();
        guest.send(5001, local(&outside), b"to the world");
        let (data, from) = receive(&outside);
        assert_eq!((data.as_slice(), *from.ip()), (&b"to the world"[..], UPLINK));
        outside.send_to(b"from the world", from).unwrap();
        let answer = guest.expect();
        assert_eq!((answer.from, answer.to), (local(&outside), SocketAddrV4::new(GUEST_IP, 5001)));
        assert_eq!(answer.data, b"from the world");

        let status = host.net("status net.slot:=7").success().reply();
        let count = |name: &str| status["net"]["status"][name].as_u64().unwrap();
        assert!(count("rx_packets") >= 2 && count("tx_packets") >= 2, "{status}");
        assert!(count("rx_bytes") >= 40 + b"to the hostto the world".len() as u64, "{status}");
    });
}

#[test]
fn as_root_no_guest_reaches_another_or_sends_under_an_address_that_is_not_its_own() {
    on_private_host(|host| {
        host.create("a", Some(7));
        host.create("b", Some(8));
        let (a, b) = (Guest::attach(7), Guest::attach(8));
        let outside = host.outside();

        // The neighbour is there: the host reaches it.
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(b"from the host", (host_ip(8), 49983)).unwrap();
        assert_eq!(b.expect().data, b"from the host");
        a.send(5000, SocketAddrV4::new(host_ip(8), 49983), b"from the neighbour");
        a.send(5000, SocketAddrV4::new("10.12.0.17".parse().unwrap(), 49983), b"from the neighbour");
        assert_eq!(b.receive(NOTHING), None);

        // Whatever the guest claims to be, it leaves under its slot's address.
        let here = socket("10.12.0.14".parse().unwrap());
        a.send_from("10.11.0.8:6000".parse().unwrap(), local(&here), b"as the neighbour");
        assert_eq!(*receive(&here).1.ip(), host_ip(7));
        // And where the namespace does not see to that, the host does.
        run("ip", "netns exec wrenn-ns-7 nft flush ruleset");
        a.send_from(
            SocketAddrV4::new(GUEST_IP, 6001),
            SocketAddrV4::new(OUTSIDE, local(&outside).port()),
            b"unnatted",
        );
        receives_nothing(&outside);
    });
}

#[test]
fn as_root_a_guest_that_moves_to_another_slot_notices_nothing() {
    on_private_host(|host| {
        let outside = host.outside();
        for slot in [7, 8] {
            host.create("a", Some(slot));
            let guest = Guest::attach(slot);
            // Its own address, and the hardware address it knows its gateway by, are those of the other slot.
            guest.send(5000, local(&outside), b"still me");
            let (data, from) = receive(&outside);
            assert_eq!(data, b"still me");
            outside.send_to(b"welcome", from).unwrap();
            assert_eq!(guest.expect().data, b"welcome");
            drop(guest);
            host.net(&format!("remove id=a net.slot:={slot}")).success();
        }
    });
}

#[test]
fn as_root_the_rules_are_as_nft_reads_them_and_do_not_grow_with_the_slots() {
    on_private_host(|host: &PrivateHost| {
        host.create("a", Some(7));
        let one = run("nft", "list ruleset");
        assert_eq!(one, include_str!("golden/host.nft"));
        assert_eq!(run("ip", "netns exec wrenn-ns-7 nft list ruleset"), include_str!("golden/slot-7.nft"));
        for slot in 8..20 {
            host.create(&format!("s{slot}"), Some(slot));
        }
        assert_eq!(run("nft", "list ruleset"), one);
    });
}
