//! `wrenn-net remove`: the slot's network goes, the slot is free.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use sys::netns;
use wire::{Call, Error as WireError, Map, Reply, Value};

use crate::netlink::route::{self, Link, delete_link, is_removal_of};
use crate::netlink::{Request, Socket};
use crate::state::State;
use crate::{Error, Owner, Slot, host};

/// How long a removal of an interface may take to show before it is asked for again, and waited for.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(call: &mut Call) -> Result<Reply, WireError> {
    let owner = Owner::new(call.host.tag(), call.id()?);
    let section = call.document.find::<Map<String, Value>>("net")?;
    let slot = match section {
        Some(_) => Some(call.document.need::<Slot>("net.slot")?),
        None => call.fields().find::<Slot>("slot")?,
    };
    match slot {
        Some(slot) => {
            host::check_privilege()?;
            remove(slot, &owner)?;
        }
        // A create that was killed has no section to show: what carries the sandbox's mark is its own.
        None => remove_marked(&owner)?,
    }
    call.document.remove("net");
    Ok(Reply::Document)
}

/// Takes down what of the slot is there, if it is this owner's. `false` when nothing of this owner's was there: gone
/// already, or the slot is somebody else's by now.
///
/// # Errors
/// What could not be taken down; everything else is.
pub fn remove(slot: Slot, owner: &Owner) -> Result<bool, WireError> {
    let state = State::read(slot)?;
    match &state.owner {
        Some(now) if now == owner => take_down(&state).map(|()| true),
        Some(other) => {
            log::info!("slot {slot} belongs to {other} now: left alone");
            Ok(false)
        }
        None => Ok(false),
    }
}

/// Takes down every slot that carries this owner's mark.
fn remove_marked(owner: &Owner) -> Result<(), WireError> {
    let all = State::all()?;
    let own = all.iter().filter(|state| state.owner.as_ref() == Some(owner));
    WireError::all(own.filter_map(|state| take_down(state).err()).collect::<Vec<_>>())
}

/// The file goes last: until then nobody else gets the slot, and it says whose the rest is.
pub(crate) fn take_down(state: &State) -> Result<(), WireError> {
    let path = state.slot.path();
    let unpinned = netns::unpin(&path).map_err(Error::file("unmount the namespace from", &path));
    let unlinked = state.link.as_ref().map_or(Ok(()), remove_link);
    let freed = match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path)(error)),
        _ => Ok(()),
    };
    WireError::all(
        [unpinned.map(drop), unlinked, freed].into_iter().filter_map(Result::err).map(WireError::from),
    )
}

fn remove_link(link: &Link) -> Result<(), Error> {
    let request = delete_link(link.index, &link.name);
    if removed_apart(link, &request)? {
        return Ok(());
    }
    match Socket::route()?.send(&[request]) {
        // It went with its namespace, or with the peer that somebody removed.
        Err(error) if error.errno() == Some(nix::libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// The kernel takes the interface off its list within a millisecond and then lets who asked for it wait for tens of them, for
/// a grace period of its own (`rcu_barrier` in `netdev_run_todo`). So a process apart asks, and this one goes on when it hears
/// that the interface is gone. `false` when it did not hear so.
fn removed_apart(link: &Link, request: &Request) -> Result<bool, Error> {
    let mut news = Socket::route()?;
    news.hear_links()?;
    // Listening first, looking then: whenever it goes from here on, that is heard.
    let mut socket = Socket::route()?;
    if route::link(&mut socket, &link.name)?.is_none_or(|now| now.index != link.index) {
        return Ok(true);
    }
    if let Err(error) = socket.send_apart(request) {
        log::debug!("{error}: waiting for it here instead");
        return Ok(false);
    }
    let deadline = Instant::now() + PATIENCE;
    while let Some(heard) = news.hear(deadline)? {
        if heard.iter().any(|one| is_removal_of(link.index, one)) {
            return Ok(true);
        }
    }
    Ok(false)
}
