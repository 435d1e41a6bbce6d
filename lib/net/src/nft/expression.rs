//! Expressions of a rule. All work on register 1; a comparison that fails ends the rule.

use std::net::Ipv4Addr;

use super::attributes::Attributes;

const REG_VERDICT: u32 = 0;
const REG_1: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const IFNAMSIZ: usize = 16;

/// What a rule checks of a packet, and does with it.
#[derive(Debug)]
pub(crate) enum Expression {
    /// Name of the interface it came in by → register.
    InputName,
    /// Name of the interface it goes out by → register.
    OutputName,
    /// Bytes of the network header → register.
    Header { offset: u32, length: u32 },
    /// Goes on if the register starts with these bytes.
    Is(Vec<u8>),
    /// Goes on if it does not.
    IsNot(Vec<u8>),
    /// An address → register.
    Address(Ipv4Addr),
    /// The packet ends here.
    Drop,
    /// The connection goes on from the address in the register.
    SourceNat,
    /// The connection goes on to the address in the register.
    DestinationNat,
    /// The connection goes on from the address of the interface it goes out by.
    Masquerade,
}

use Expression as E;

/// Goes on for packets that came in by an interface of this very name.
pub(crate) fn input_is(name: &str) -> [E; 2] {
    [E::InputName, E::Is(whole_name(name))]
}

/// Goes on for packets that go out by an interface of this very name.
pub(crate) fn output_is(name: &str) -> [E; 2] {
    [E::OutputName, E::Is(whole_name(name))]
}

/// Offset of the source address in an IPv4 header.
pub(crate) const SOURCE: u32 = 12;
/// Offset of the destination address in an IPv4 header.
pub(crate) const DESTINATION: u32 = 16;

/// The kernel compares names with all of their padding; without it, it compares a prefix.
fn whole_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

impl Expression {
    /// Its name in the kernel and its attributes.
    pub fn encode(&self) -> Attributes {
        let list = Attributes::default;
        // Numbers of linux/netfilter/nf_tables.h: NFTA_META_*, NFTA_PAYLOAD_*, NFTA_CMP_*, NFTA_IMMEDIATE_*, NFTA_NAT_*.
        let (name, data) = match self {
            E::InputName => ("meta", list().number(2, 6).number(1, REG_1)),
            E::OutputName => ("meta", list().number(2, 7).number(1, REG_1)),
            E::Header { offset, length } => {
                let network_header = 1;
                (
                    "payload",
                    list().number(1, REG_1).number(2, network_header).number(3, *offset).number(4, *length),
                )
            }
            E::Is(bytes) => ("cmp", compare(0, bytes)),
            E::IsNot(bytes) => ("cmp", compare(1, bytes)),
            E::Address(address) => {
                ("immediate", list().number(1, REG_1).nest(2, list().bytes(1, &address.octets())))
            }
            E::Drop => {
                let verdict = list().nest(2, list().number(1, 0));
                ("immediate", list().number(1, REG_VERDICT).nest(2, verdict))
            }
            E::SourceNat => ("nat", translate(0)),
            E::DestinationNat => ("nat", translate(1)),
            E::Masquerade => ("masq", list()),
        };
        list().text(1, name).nest(2, data)
    }
}

fn compare(operator: u32, bytes: &[u8]) -> Attributes {
    let value = Attributes::default().bytes(1, bytes);
    Attributes::default().number(1, REG_1).number(2, operator).nest(3, value)
}

fn translate(kind: u32) -> Attributes {
    Attributes::default().number(1, kind).number(2, NFPROTO_IPV4).number(3, REG_1)
}
