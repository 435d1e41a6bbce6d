//! Links, addresses and routes, as messages.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::{Answer, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Request, Socket};
use crate::Error;

/// A network interface as the kernel tells it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub alias: Option<String>,
    pub up: bool,
    pub stats: Stats64,
}

/// What to change about an interface.
#[derive(Debug, Default)]
pub(crate) struct Change<'a> {
    pub alias: Option<&'a str>,
    pub mac: Option<[u8; 6]>,
}

/// Makes a veth pair: `name` where the socket is, `peer` in the namespace `netns` from the first moment (moving it there
/// afterwards waits for an RCU grace period).
pub(crate) fn new_veth(name: &str, peer: &str, netns: &impl AsFd) -> Request {
    let mut other = LinkMessage::default();
    other.attributes =
        vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd())];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request(format!("make the veth pair {name}"), flags, RouteNetlinkMessage::NewLink(link))
}

/// Brings the interface of that name up, changed.
pub(crate) fn set_up(name: &str, change: &Change<'_>) -> Request {
    let mut link = LinkMessage::default();
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes.extend(change.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
    link.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    request(format!("set {name} up"), NLM_F_ACK, RouteNetlinkMessage::SetLink(link))
}

/// Removes an interface, and with a veth its peer.
pub(crate) fn delete_link(index: u32, name: &str) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    request(format!("remove {name}"), NLM_F_ACK, RouteNetlinkMessage::DelLink(link))
}

/// Gives an interface an address.
pub(crate) fn new_address(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes =
        vec![AddressAttribute::Local(address.into()), AddressAttribute::Address(address.into())];
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request(format!("give an interface {address}/{prefix}"), flags, RouteNetlinkMessage::NewAddress(message))
}

/// Routes one address, or with `None` all that have no other route, to `gateway`.
pub(crate) fn new_route(to: Option<Ipv4Addr>, gateway: Ipv4Addr, index: u32) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    if let Some(to) = to {
        message.header.destination_prefix_length = 32;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    }
    message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    message.attributes.push(RouteAttribute::Oif(index));
    let what = to.map_or("add the default route".to_owned(), |to| format!("add the route to {to}"));
    request(what, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewRoute(message))
}

/// Says for good which hardware address an address behind an interface has.
pub(crate) fn new_neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request(format!("add the neighbour {address}"), flags, RouteNetlinkMessage::NewNeighbour(message))
}

/// The interface of that name, `None` when there is none.
pub(crate) fn link(socket: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    let mut link = LinkMessage::default();
    link.attributes = vec![LinkAttribute::IfName(name.to_owned())];
    match socket.ask(request(format!("look for {name}"), 0, RouteNetlinkMessage::GetLink(link))) {
        Ok(answers) => Ok(answers.iter().find_map(parse)),
        Err(error) if error.errno() == Some(nix::libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All interfaces where the socket is.
pub(crate) fn links(socket: &mut Socket) -> Result<Vec<Link>, Error> {
    let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(socket.ask(request("list interfaces", NLM_F_DUMP, all))?.iter().filter_map(parse).collect())
}

/// Whether this is the news that the interface of that number has been removed.
pub(crate) fn is_removal_of(index: u32, answer: &Answer) -> bool {
    matches!(decode(answer), Some(RouteNetlinkMessage::DelLink(message)) if message.header.index == index)
}

fn decode(answer: &Answer) -> Option<RouteNetlinkMessage> {
    let mut header = NetlinkHeader::default();
    header.message_type = answer.kind;
    RouteNetlinkMessage::deserialize(&header, &answer.body).ok()
}

fn request(what: impl Into<String>, flags: u16, message: RouteNetlinkMessage) -> Request {
    let mut body = vec![0; message.buffer_len()];
    message.serialize(&mut body);
    Request { what: what.into(), kind: NetlinkSerializable::message_type(&message), flags, body }
}

fn parse(answer: &Answer) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = decode(answer)? else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        alias: None,
        up: message.header.flags.contains(LinkFlags::Up),
        stats: Stats64::default(),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Stats64(stats) => link.stats = stats,
            _ => {}
        }
    }
    Some(link)
}
