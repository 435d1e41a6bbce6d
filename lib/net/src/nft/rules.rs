//! The two rule sets: one table in the host, made once and the same however many slots there are, and one in each
//! slot's namespace.

use super::batch::{Batch, Hook, has_table};
use super::expression::{DESTINATION, Expression as E, SOURCE, input_is, output_is};
use crate::Error;
use crate::netlink::Socket;
use crate::slot::{GUEST_IP, PEER, Slot, VETH_PREFIX};

const PREROUTING: Hook = Hook { kind: "nat", number: 0, priority: -100 };
const FORWARD: Hook = Hook { kind: "filter", number: 2, priority: 0 };
const POSTROUTING: Hook = Hook { kind: "nat", number: 4, priority: 100 };

/// 10.11.0.0/16, all slots' host addresses.
const HOST_ADDRESSES: [u8; 2] = [10, 11];

/// Makes a slot's table, in the namespace that the calling thread is in.
pub(crate) fn slot_table(slot: Slot) -> Result<(), Error> {
    slot_rules(slot).send(&mut Socket::netfilter()?)
}

/// Makes the host's table unless it is there.
pub(crate) fn host_table() -> Result<(), Error> {
    let mut socket = Socket::netfilter()?;
    if has_table(&mut socket)? {
        return Ok(());
    }
    match host_rules().send(&mut socket) {
        // Somebody else was quicker, with the same batch.
        Err(error) if error.errno() == Some(nix::libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Removes the host's table if it is there.
pub(crate) fn remove_host_table() -> Result<(), Error> {
    let mut socket = Socket::netfilter()?;
    if has_table(&mut socket)? { Batch::new().remove_table().send(&mut socket) } else { Ok(()) }
}

/// Whether the host's table is there.
pub(crate) fn has_host_table() -> Result<bool, Error> {
    has_table(&mut Socket::netfilter()?)
}

/// ```text
/// table ip wrenn {
///   chain prerouting  { type nat hook prerouting priority dstnat;
///     iifname "eth0" ip daddr HOST_IP dnat to 169.254.0.21 }
///   chain postrouting { type nat hook postrouting priority srcnat;
///     oifname "eth0" snat to HOST_IP }
/// }
/// ```
fn slot_rules(slot: Slot) -> Batch {
    let to_host_ip = [
        E::Header { offset: DESTINATION, length: 4 },
        E::Is(slot.host_ip().octets().to_vec()),
        E::Address(GUEST_IP),
        E::DestinationNat,
    ];
    let from_anything = [E::Address(slot.host_ip()), E::SourceNat];
    Batch::new()
        .table()
        .chain("prerouting", PREROUTING)
        .chain("postrouting", POSTROUTING)
        .rule("prerouting", input_is(PEER).into_iter().chain(to_host_ip))
        .rule("postrouting", output_is(PEER).into_iter().chain(from_anything))
}

/// ```text
/// table ip wrenn {
///   chain forward     { type filter hook forward priority filter;
///     iifname "wrenn-v-*" oifname "wrenn-v-*" drop
///     iifname "wrenn-v-*" ip saddr != 10.11.0.0/16 drop }
///   chain postrouting { type nat hook postrouting priority srcnat;
///     ip saddr 10.11.0.0/16 oifname != "wrenn-v-*" masquerade }
/// }
/// ```
/// No slot reaches another, and none sends under an address that is not a slot's. There is no `accept`: it would end
/// this chain only, and not overrule the drop of another table.
fn host_rules() -> Batch {
    let from_a_slot = || [E::InputName, E::Is(VETH_PREFIX.into())];
    let to_a_slot = [E::OutputName, E::Is(VETH_PREFIX.into())];
    let source = || E::Header { offset: SOURCE, length: 2 };
    Batch::new()
        .table()
        .chain("forward", FORWARD)
        .chain("postrouting", POSTROUTING)
        .rule("forward", from_a_slot().into_iter().chain(to_a_slot).chain([E::Drop]))
        .rule(
            "forward",
            from_a_slot().into_iter().chain([source(), E::IsNot(HOST_ADDRESSES.into()), E::Drop]),
        )
        .rule(
            "postrouting",
            [
                source(),
                E::Is(HOST_ADDRESSES.into()),
                E::OutputName,
                E::IsNot(VETH_PREFIX.into()),
                E::Masquerade,
            ],
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages that nft 1.0.6 sends for the rule set in the comment above, taken with strace: a line each.
    fn golden(text: &str) -> Vec<Vec<u8>> {
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        text.lines().map(|line| line.as_bytes().chunks(2).map(byte).collect()).collect()
    }

    #[test]
    fn the_hosts_rules_are_byte_for_byte_what_nft_sends() {
        assert_eq!(host_rules().bodies(), golden(include_str!("golden/host.hex")));
    }

    #[test]
    fn a_slots_rules_are_byte_for_byte_what_nft_sends() {
        assert_eq!(slot_rules(Slot::new(7).unwrap()).bodies(), golden(include_str!("golden/slot-7.hex")));
    }
}
