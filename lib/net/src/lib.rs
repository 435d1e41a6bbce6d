//! Network slots: a namespace with a tap for one VM, reachable from the host under an address of its own, and with a
//! way out. `docs/wrenn-net.md` is the page about it.
//!
//! Nothing is remembered but in the kernel: a slot is the file `/run/netns/wrenn-ns-N`, the namespace mounted on it,
//! and the host's end of its veth pair. The file and the interfaces name their owner.
#![forbid(unsafe_code)]

mod build;
mod connections;
mod create;
mod error;
mod gc;
mod host;
mod list;
mod netlink;
mod nft;
mod owner;
mod remove;
mod reservation;
mod slot;
mod state;
mod status;

use wire::{Field, Input, LockOf, Tool, Type, Verb};

pub use connections::{Traffic, connections, traffic};
pub use error::Error;
pub use owner::Owner;
pub use slot::Slot;

const ID: Field = Field::need("id", Type::Id, "the sandbox that owns the slot");

const SECTION: &[Field] = &[
    Field::need("net.slot", Type::Integer, "the slot, 1 to 32767"),
    Field::need("net.netns", Type::String, "network namespace, as `ip netns` knows it"),
    Field::need("net.veth", Type::String, "the host's end of the veth pair"),
    Field::need("net.host_ip", Type::String, "the address under which the host reaches the guest"),
    Field::need("net.veth_ip", Type::String, "address of the host's end, /31"),
    Field::need("net.peer_ip", Type::String, "address of the namespace's end, eth0, /31"),
    Field::need("net.tap", Type::String, "tap device in the namespace, for the VMM"),
    Field::need("net.tap_ip", Type::String, "its address, /30: the guest's gateway"),
    Field::need("net.guest_ip", Type::String, "address the guest gives itself, the same in every slot"),
    Field::need("net.guest_mac", Type::String, "hardware address of the guest, the same in every slot"),
];

/// The program `wrenn-net`.
pub static TOOL: Tool = Tool {
    name: "wrenn-net",
    about: "network slots: netns, veth, tap, NAT",
    section: "net",
    short: "net",
    verbs: &[
        Verb {
            fields: &[
                ID,
                Field::may(
                    "net.slot",
                    Type::Integer,
                    "the slot to take, 1 to 32767; default: the lowest free one",
                ),
            ],
            reply: SECTION,
            example: "wrenn-net create id=demo",
            ..Verb::new("create", "take a slot and build its network", create::run)
        },
        Verb {
            fields: &[
                ID,
                Field::may(
                    "net.slot",
                    Type::Integer,
                    "the slot; without a section `net` there is nothing to remove, which is success",
                ),
            ],
            example: "wrenn-net remove id=demo net.slot:=1",
            ..Verb::new("remove", "take the slot's network down and free it", remove::run)
        },
        Verb {
            fields: &[Field::need("net.slot", Type::Integer, "the slot")],
            reply: &[
                Field::need("net.status.exists", Type::Bool, "whether anything of the slot is there"),
                Field::need("net.status.complete", Type::Bool, "whether all of it is"),
                Field::may("net.status.owner", Type::Object, "who owns it: {tag, id}"),
                Field::may("net.status.up", Type::Bool, "whether the host's end is up"),
                Field::may(
                    "net.status.rx_bytes",
                    Type::Integer,
                    "what the host has received from the slot, bytes",
                ),
                Field::may("net.status.tx_bytes", Type::Integer, "what the host has sent to the slot, bytes"),
                Field::may("net.status.rx_packets", Type::Integer, "the same in packets"),
                Field::may("net.status.tx_packets", Type::Integer, "the same in packets"),
            ],
            example: "wrenn-net status net.slot:=1",
            ..Verb::new("status", "say what the kernel knows about a slot", status::run)
        },
        Verb {
            reply: &[Field::need(
                "slots",
                Type::Array,
                "this root's slots: {slot, netns, veth, host_ip, owner: {tag, id}, complete}",
            )],
            example: "wrenn-net list",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("list", "list this root's slots", list::run)
        },
        Verb {
            fields: &[
                Field::may("keep", Type::Strings, "ids whose slots stay; default: none"),
                Field::may(
                    "min_age_s",
                    Type::Integer,
                    "seconds; what is younger may still be in the making and is left alone (default 60)",
                ),
            ],
            reply: &[
                Field::need("removed", Type::Array, "what was removed: {slot, id}"),
                Field::need("left", Type::Array, "what was not: {slot, id, why: kept | locked | young}"),
                Field::need("host_table", Type::Bool, "whether the host's nftables table is still there"),
            ],
            example: "wrenn-net gc keep:='[\"demo\"]'",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("gc", "remove this root's slots that nobody keeps", gc::run)
        },
    ],
};
