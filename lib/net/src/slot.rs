//! A slot's number and everything that follows from it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use wire::{FromField, Value, json};

/// Where `ip netns` keeps its namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";
/// The namespace's end of the veth pair, the same in every slot.
pub(crate) const PEER: &str = "eth0";
/// The VMM's tap, the same in every slot.
pub(crate) const TAP: &str = "tap0";
/// The tap's address and the guest's, /30, the same in every slot: a snapshot taken in one slot runs in any other.
pub(crate) const TAP_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
pub(crate) const GUEST_IP: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
pub(crate) const TAP_PREFIX: u8 = 30;
/// The guest's hardware address.
pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x05];
/// The tap's own. It is fixed too: a restored guest still knows its gateway by it.
pub(crate) const TAP_MAC: [u8; 6] = [0x02, 0xfc, 0, 0, 0, 0x06];
/// Prefix of every host's end; nftables matches it as `wrenn-v-*`.
pub(crate) const VETH_PREFIX: &str = "wrenn-v-";
const NETNS_PREFIX: &str = "wrenn-ns-";

const HOST_BASE: u32 = u32::from_be_bytes([10, 11, 0, 0]);
const VETH_BASE: u32 = u32::from_be_bytes([10, 12, 0, 0]);

/// A slot of this host, 1 to 32767. All roots share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The last one: 2·N + 1 still fits the veth addresses' 16 bits.
    pub const MAX: u16 = 32767;

    /// The slot of that number, `None` outside 1 to 32767.
    pub fn new(number: u64) -> Option<Self> {
        u16::try_from(number).ok().filter(|number| (1..=Self::MAX).contains(number)).map(Self)
    }

    /// All of them, lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=Self::MAX).map(Self)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Its network namespace.
    pub fn netns(self) -> String {
        format!("{NETNS_PREFIX}{}", self.0)
    }

    /// The file that reserves the slot and that its namespace is mounted on.
    pub fn path(self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(self.netns())
    }

    /// The host's end of its veth pair: 13 characters at most, of the kernel's 15.
    pub fn veth(self) -> String {
        format!("{VETH_PREFIX}{}", self.0)
    }

    /// The slot whose namespace has this name.
    pub fn of_netns(name: &str) -> Option<Self> {
        Self::of_name(NETNS_PREFIX, name)
    }

    /// The slot whose interface has this name.
    pub fn of_veth(name: &str) -> Option<Self> {
        Self::of_name(VETH_PREFIX, name)
    }

    /// The slot that has this host address.
    pub fn of_host_ip(address: Ipv4Addr) -> Option<Self> {
        Self::new(u64::from(address.to_bits().checked_sub(HOST_BASE)?))
    }

    fn of_name(prefix: &str, name: &str) -> Option<Self> {
        // Only the canonical spelling: "wrenn-v-007" is not ours.
        let slot = Self::new(name.strip_prefix(prefix)?.parse().ok()?)?;
        (name.strip_prefix(prefix)? == slot.0.to_string()).then_some(slot)
    }

    /// The address under which the host reaches the guest.
    pub fn host_ip(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(HOST_BASE + u32::from(self.0))
    }

    /// Address of the host's end of the veth pair, /31.
    pub fn veth_ip(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(VETH_BASE + 2 * u32::from(self.0))
    }

    /// Address of the namespace's end, /31.
    pub fn peer_ip(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(VETH_BASE + 2 * u32::from(self.0) + 1)
    }

    /// The fields of a document's section `net`, in the order in which it shows them.
    pub fn section(self) -> [(&'static str, Value); 10] {
        [
            ("slot", json!(self.0)),
            ("netns", json!(self.netns())),
            ("veth", json!(self.veth())),
            ("host_ip", json!(self.host_ip().to_string())),
            ("veth_ip", json!(self.veth_ip().to_string())),
            ("peer_ip", json!(self.peer_ip().to_string())),
            ("tap", json!(TAP)),
            ("tap_ip", json!(TAP_IP.to_string())),
            ("guest_ip", json!(GUEST_IP.to_string())),
            ("guest_mac", json!(GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":"))),
        ]
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromField for Slot {
    const WANTED: &'static str = "a slot: a whole number from 1 to 32767";
    fn from_field(value: &Value) -> Option<Self> {
        Self::new(value.as_u64()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slot_7_is_the_one_of_the_design() {
        let section: wire::Map<_, _> =
            Slot(7).section().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(
            Value::Object(section).to_string(),
            r#"{"slot":7,"netns":"wrenn-ns-7","veth":"wrenn-v-7","host_ip":"10.11.0.7","veth_ip":"10.12.0.14","peer_ip":"10.12.0.15","tap":"tap0","tap_ip":"169.254.0.22","guest_ip":"169.254.0.21","guest_mac":"02:fc:00:00:00:05"}"#
        );
    }

    #[test]
    fn no_two_slots_share_an_address_or_a_name() {
        let mut addresses = HashSet::new();
        let mut names = HashSet::new();
        for slot in Slot::all() {
            for address in [slot.host_ip(), slot.veth_ip(), slot.peer_ip()] {
                assert!(addresses.insert(address), "{address} of slot {slot}");
            }
            assert_eq!(slot.veth_ip().to_bits() ^ slot.peer_ip().to_bits(), 1, "both ends lie in one /31");
            assert!(slot.veth().len() <= 15);
            assert!(names.insert(slot.veth()) && names.insert(slot.netns()));
            assert_eq!(Slot::of_veth(&slot.veth()), Some(slot));
            assert_eq!(Slot::of_host_ip(slot.host_ip()), Some(slot));
            assert_eq!(Slot::of_netns(&slot.netns()), Some(slot));
        }
        assert_eq!(Slot(32767).host_ip(), Ipv4Addr::new(10, 11, 127, 255));
        assert_eq!(Slot(32767).peer_ip(), Ipv4Addr::new(10, 12, 255, 255));
    }

    #[test]
    fn only_the_one_spelling_of_a_name_is_a_slot() {
        for name in
            ["wrenn-v-0", "wrenn-v-007", "wrenn-v-32768", "wrenn-v-+7", "wrenn-v-", "wrenn-v-7x", "eth0"]
        {
            assert_eq!(Slot::of_veth(name), None, "{name}");
        }
        assert_eq!(Slot::of_netns("wrenn-v-7"), None);
        for address in [[10, 11, 0, 0], [10, 10, 255, 255], [10, 11, 128, 0], [10, 12, 0, 2]] {
            assert_eq!(Slot::of_host_ip(address.into()), None, "{address:?}");
        }
    }
}
