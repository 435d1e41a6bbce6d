//! Who talks to a guest: the TCP connections from outside that the slot's namespace tracks. `traffic`: how much is said.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::Ipv4Addr;

use sys::netns;

use crate::netlink::socket::{NLM_F_DUMP, attributes};
use crate::netlink::{Request, Socket, route};
use crate::{Error, Slot};

// linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h
const CTNETLINK_GET: u16 = 1 << 8 | 1;
const NFGENMSG: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// Flags beside an attribute's type: nested, and in network byte order.
const NLA_TYPE_MASK: u16 = 0x3fff;
const AF_INET: u8 = 2;

/// linux/netfilter/nf_conntrack_tcp.h: ESTABLISHED, FIN_WAIT and CLOSE_WAIT. In the last two one side has said its last
/// and the other may go on; before them nobody has answered, after them nobody will.
const OPEN: std::ops::RangeInclusive<u8> = 3..=5;

/// What the host's end of a slot has passed on since the slot was made, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// What the host has received from the slot.
    pub rx_bytes: u64,
    /// What it has sent to the slot.
    pub tx_bytes: u64,
}

/// The traffic of every slot of this host.
///
/// # Errors
/// What the kernel said.
pub fn traffic() -> Result<BTreeMap<Slot, Traffic>, Error> {
    let links = route::links(&mut Socket::route()?)?;
    let of = |link: route::Link| {
        let traffic = Traffic { rx_bytes: link.stats.rx_bytes, tx_bytes: link.stats.tx_bytes };
        Some((Slot::of_veth(&link.name)?, traffic))
    };
    Ok(links.into_iter().filter_map(of).collect())
}

/// How many TCP connections to the guest from outside are open. Those that the guest has made itself do not count.
///
/// A kernel that does not list what it tracks (module nf_conntrack_netlink) leaves the connections of this host's own
/// sockets, in the namespace of the caller.
///
/// # Errors
/// What the kernel said; `not_found` when the slot is not there.
pub fn connections(slot: Slot) -> Result<u64, Error> {
    let path = slot.path();
    let file = File::open(&path).map_err(Error::file("open", &path))?;
    let tracked = netns::on_own_thread(|| {
        netns::enter(&file).map_err(Error::file("enter", &path))?;
        tracked(slot.host_ip())
    });
    match tracked {
        Err(Error::Refused { what, source, .. }) => {
            log::debug!("cannot {what} ({source}): looking at this host's own sockets");
            let path = "/proc/thread-self/net/tcp";
            let table = fs::read_to_string(path).map_err(Error::file("read", path))?;
            Ok(of_this_host(&table, slot.host_ip()))
        }
        counted => counted,
    }
}

/// Those that the namespace of the calling thread tracks.
fn tracked(host_ip: Ipv4Addr) -> Result<u64, Error> {
    let dump = Request {
        what: "list tracked connections".into(),
        kind: CTNETLINK_GET,
        flags: NLM_F_DUMP,
        body: vec![AF_INET, 0, 0, 0],
    };
    let answers = Socket::netfilter()?.ask(dump)?;
    Ok(answers.iter().filter(|answer| is_open_to(host_ip, &answer.body)).count() as u64)
}

/// Whether this entry is an open TCP connection that was made to this address, before NAT.
fn is_open_to(host_ip: Ipv4Addr, entry: &[u8]) -> bool {
    let entry = entry.get(NFGENMSG..).unwrap_or_default();
    let at = |path: &[u16]| {
        path.iter().try_fold(entry, |bytes, wanted| {
            attributes(bytes).find(|(kind, _)| kind & NLA_TYPE_MASK == *wanted).map(|(_, value)| value)
        })
    };
    let to = at(&[CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_IP_V4_DST]);
    let state = at(&[CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE]);
    to == Some(&host_ip.octets()) && state.and_then(|state| state.first()).is_some_and(|s| OPEN.contains(s))
}

/// Established connections to this address in the form of /proc/net/tcp: addresses as the kernel's 32 bits in hex.
fn of_this_host(table: &str, host_ip: Ipv4Addr) -> u64 {
    const ESTABLISHED: &str = "01";
    let wanted = format!("{:08X}", u32::from_ne_bytes(host_ip.octets()));
    let is_it = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let remote = fields.next().and_then(|remote| remote.split_once(':'));
        remote.is_some_and(|(address, _)| address == wanted) && fields.next() == Some(ESTABLISHED)
    };
    table.lines().filter(is_it).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn entry(to: [u8; 4], state: Option<u8>) -> Vec<u8> {
        const NESTED: u16 = 0x8000;
        let ip = [attribute(1, &[10, 12, 0, 2]), attribute(2, &to)].concat();
        let tuple = [attribute(NESTED | 1, &ip), attribute(NESTED | 2, &attribute(1, &[6]))].concat();
        let mut entry = vec![2, 0, 0, 0];
        entry.extend(attribute(NESTED | 1, &tuple));
        // What NAT has made of it: the same address there is no connection from outside.
        entry.extend(attribute(NESTED | 2, &attribute(NESTED | 1, &attribute(2, &[10, 11, 0, 7]))));
        if let Some(state) = state {
            let tcp = attribute(NESTED | 1, &attribute(1, &[state]));
            entry.extend(attribute(NESTED | 4, &tcp));
        }
        entry
    }

    #[test]
    fn open_connections_to_the_guest_count_and_no_others() {
        let host_ip = Ipv4Addr::new(10, 11, 0, 7);
        let counts = |to, state| is_open_to(host_ip, &entry(to, state));
        let open: Vec<u8> = (0..=9).filter(|state| counts([10, 11, 0, 7], Some(*state))).collect();
        assert_eq!(open, [3, 4, 5]);
        assert!(!counts([1, 1, 1, 1], Some(3)), "the guest's own");
        assert!(!counts([10, 11, 0, 7], None), "not TCP");
        let whole = entry([10, 11, 0, 7], Some(3));
        for cut in 0..whole.len() {
            assert!(!is_open_to(host_ip, &whole[..cut]), "cut at {cut}");
        }
    }

    #[test]
    fn the_hosts_own_sockets_are_read_as_proc_shows_them() {
        let to = format!("{:08X}", u32::from_ne_bytes([10, 11, 0, 7]));
        let line = |remote: &str, state: &str| {
            format!(
                "   1: 02000C0A:8B20 {remote}:C34F {state} 00000000:00000000 00:00000000 00000000 0 0 1 1\n"
            )
        };
        let table = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n".to_owned(),
            line(&to, "01"),
            line(&to, "06"),
            line("0100007F", "01"),
            line(&to, "01"),
        ];
        assert_eq!(of_this_host(&table.concat(), Ipv4Addr::new(10, 11, 0, 7)), 2);
    }
}
