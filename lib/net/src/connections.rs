//! Who talks to guests, and how much: open TCP connections from outside, and bytes.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;

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

/// How many TCP connections to each slot's guest are open. Those that the guest has made itself do not count.
///
/// The host tracks them as soon as there is a slot: its table does NAT. It is asked once for all slots, as a dump goes through
/// the whole table of tracked connections, which all namespaces share. A kernel that does not list them (module
/// nf_conntrack_netlink) leaves the connections of the host's own sockets.
///
/// # Errors
/// What the kernel said.
pub fn connections() -> Result<BTreeMap<Slot, u64>, Error> {
    let dump = Request {
        what: "list tracked connections".into(),
        kind: CTNETLINK_GET,
        flags: NLM_F_DUMP,
        body: vec![AF_INET, 0, 0, 0],
    };
    match Socket::netfilter()?.ask(dump) {
        Ok(answers) => Ok(count(answers.iter().filter_map(|answer| open_to(&answer.body)))),
        Err(error) => {
            log::debug!("{error}: looking at this host's own sockets");
            let path = "/proc/thread-self/net/tcp";
            let table = fs::read_to_string(path).map_err(Error::file("read", path))?;
            Ok(count(of_this_host(&table)))
        }
    }
}

fn count(addresses: impl Iterator<Item = Ipv4Addr>) -> BTreeMap<Slot, u64> {
    let mut counts = BTreeMap::new();
    for slot in addresses.filter_map(Slot::of_host_ip) {
        *counts.entry(slot).or_default() += 1;
    }
    counts
}

/// Where this entry's connection was made to, before NAT, if it is an open TCP connection.
fn open_to(entry: &[u8]) -> Option<Ipv4Addr> {
    let entry = entry.get(NFGENMSG..)?;
    let at = |path: &[u16]| {
        path.iter().try_fold(entry, |bytes, wanted| {
            attributes(bytes).find(|(kind, _)| kind & NLA_TYPE_MASK == *wanted).map(|(_, value)| value)
        })
    };
    let state = at(&[CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE])?.first()?;
    let to: [u8; 4] = at(&[CTA_TUPLE_ORIG, CTA_TUPLE_IP, CTA_IP_V4_DST])?.try_into().ok()?;
    OPEN.contains(state).then(|| to.into())
}

/// Where established connections lead to, in the form of /proc/net/tcp: addresses are the kernel's 32 bits in hex.
fn of_this_host(table: &str) -> impl Iterator<Item = Ipv4Addr> {
    const ESTABLISHED: &str = "01";
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let (address, _) = fields.next()?.split_once(':')?;
        let address = u32::from_str_radix(address, 16).ok()?;
        (fields.next()? == ESTABLISHED).then(|| Ipv4Addr::from(address.to_ne_bytes()))
    })
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
    fn open_connections_count_by_where_they_were_made_to() {
        let guest = [10, 11, 0, 7];
        let open: Vec<u8> =
            (0..=9).filter(|state| open_to(&entry(guest, Some(*state))) == Some(guest.into())).collect();
        assert_eq!(open, [3, 4, 5]);
        assert_eq!(open_to(&entry(guest, None)), None, "not TCP");
        let whole = entry(guest, Some(3));
        for cut in 0..whole.len() {
            assert_eq!(open_to(&whole[..cut]), None, "cut at {cut}");
        }
        let entries = [entry(guest, Some(3)), entry([1, 1, 1, 1], Some(3)), entry(guest, Some(5))];
        let counts = count(entries.iter().filter_map(|entry| open_to(entry)));
        assert_eq!(counts, [(Slot::new(7).unwrap(), 2)].into(), "the guest's own are none");
    }

    #[test]
    fn the_hosts_own_sockets_are_read_as_proc_shows_them() {
        let to = format!("{:08X}", u32::from_ne_bytes([10, 11, 0, 7]));
        let line = |remote: &str, state: &str| {
            format!("   1: 02000C0A:8B20 {remote}:C34F {state} 00000000:00000000 00:00000000 00000000 0\n")
        };
        let table = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n".to_owned(),
            line(&to, "01"),
            line(&to, "06"),
            line("0100007F", "01"),
            line(&to, "01"),
        ];
        assert_eq!(count(of_this_host(&table.concat())), [(Slot::new(7).unwrap(), 2)].into());
    }
}
