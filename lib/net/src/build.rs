//! The network of one slot.

use std::os::fd::AsFd;

use nix::net::if_::if_nametoindex;
use sys::netns;
use sys::tap::Tun;

use crate::netlink::Socket;
use crate::netlink::route::{Change, new_address, new_neighbour, new_route, new_veth, set_up};
use crate::slot::{GUEST_IP, GUEST_MAC, PEER, TAP, TAP_IP, TAP_MAC, TAP_PREFIX};
use crate::{Error, Owner, Slot, host, nft};

const VETH_PREFIX_LENGTH: u8 = 31;

/// Builds the network of a slot that is reserved.
///
/// The namespace belongs to a thread of its own until the very last step mounts it on the slot's file. So whatever ends
/// this program before that step, SIGKILL too, ends the namespace, and with it the tap and both ends of the veth pair.
pub(crate) fn build(slot: Slot, owner: &Owner) -> Result<(), Error> {
    let mut host = Socket::route()?;
    netns::on_own_thread(|| {
        netns::unshare_net().map_err(Error::refused("make a network namespace"))?;
        let here = netns::current().map_err(Error::refused("open the new network namespace"))?;
        host::forward()?;
        make_tap()?;
        make_veth(&mut host, slot, owner, &here)?;
        let inside = Socket::route()?;
        address_inside(inside, slot, owner)?;
        address_outside(&mut host, slot)?;
        nft::slot_table(slot)?;
        let path = slot.path();
        netns::pin(&path).map_err(Error::file("mount the namespace on", path))
    })
}

fn make_tap() -> Result<(), Error> {
    let tap = Tun::open().map_err(Error::NoTun)?;
    let tap = tap.attach(TAP).map_err(Error::refused(format!("make {TAP}")))?;
    tap.persist().map_err(Error::refused(format!("make {TAP} persistent")))
}

/// One send, so that the host's end is never there without its owner.
fn make_veth(host: &mut Socket, slot: Slot, owner: &Owner, netns: &impl AsFd) -> Result<(), Error> {
    let (veth, alias) = (slot.veth(), owner.to_string());
    let change = Change { alias: Some(&alias), ..Change::default() };
    host.send(&[new_veth(&veth, PEER, netns), set_up(&veth, &change)])
}

fn address_inside(mut inside: Socket, slot: Slot, owner: &Owner) -> Result<(), Error> {
    let (tap, peer) = (index(TAP)?, index(PEER)?);
    let alias = owner.to_string();
    inside.send(&[
        set_up("lo", &Change::default()),
        set_up(TAP, &Change { alias: Some(&alias), mac: Some(TAP_MAC) }),
        set_up(PEER, &Change::default()),
        new_address(tap, TAP_IP, TAP_PREFIX),
        new_address(peer, slot.peer_ip(), VETH_PREFIX_LENGTH),
        new_route(None, slot.veth_ip(), peer),
        // Nobody has to ask for the guest: a packet sent before it answers costs no second of waiting to ask again.
        new_neighbour(tap, GUEST_IP, GUEST_MAC),
    ])
}

fn address_outside(host: &mut Socket, slot: Slot) -> Result<(), Error> {
    let veth = crate::netlink::route::link(host, &slot.veth())?;
    let gone = || Error::refused(format!("find {}", slot.veth()))(std::io::ErrorKind::NotFound.into());
    let veth = veth.ok_or_else(gone)?.index;
    host.send(&[
        new_address(veth, slot.veth_ip(), VETH_PREFIX_LENGTH),
        new_route(Some(slot.host_ip()), slot.peer_ip(), veth),
    ])
}

/// The number of an interface in the calling thread's namespace.
fn index(name: &str) -> Result<u32, Error> {
    if_nametoindex(name).map_err(|errno| Error::refused(format!("find {name}"))(errno.into()))
}
