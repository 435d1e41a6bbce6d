//! What the kernel knows about slots.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::time::Duration;

use sys::netns;

use crate::netlink::Socket;
use crate::netlink::route::{self, Link};
use crate::slot::TAP;
use crate::{Error, Owner, Slot, reservation};

/// One slot.
#[derive(Debug)]
pub(crate) struct State {
    pub slot: Slot,
    /// Its file.
    pub file: Option<Reservation>,
    /// The host's end of its veth pair.
    pub link: Option<Link>,
    /// Whose it is, as far as anything says.
    pub owner: Option<Owner>,
}

/// A slot's file.
#[derive(Debug)]
pub(crate) struct Reservation {
    /// Whether its namespace is mounted on it.
    pub pinned: bool,
    /// How long it, or the namespace, has been there.
    pub age: Duration,
}

impl State {
    /// The slot of that number.
    pub fn read(slot: Slot) -> Result<Self, Error> {
        Self::of(slot, route::link(&mut Socket::route()?, &slot.veth())?)
    }

    /// All slots of which anything is there, lowest first.
    pub fn all() -> Result<Vec<Self>, Error> {
        let links = route::links(&mut Socket::route()?)?;
        let mut slots: BTreeMap<Slot, Option<Link>> =
            reservation::reserved()?.into_iter().map(|slot| (slot, None)).collect();
        slots.extend(links.into_iter().filter_map(|link| Some((Slot::of_veth(&link.name)?, Some(link)))));
        slots.into_iter().map(|(slot, link)| Self::of(slot, link)).collect()
    }

    fn of(slot: Slot, link: Option<Link>) -> Result<Self, Error> {
        let file = Reservation::read(slot)?;
        let owner = link.as_ref().and_then(|link| Owner::parse(link.alias.as_deref()?));
        let owner = match (&file, owner) {
            (_, Some(owner)) => Some(owner),
            (Some(Reservation { pinned: false, .. }), None) => owner_in_file(slot)?,
            (Some(Reservation { pinned: true, .. }), None) => owner_inside(slot)?,
            (None, None) => None,
        };
        Ok(Self { slot, file, link, owner })
    }

    /// Whether anything of the slot is there.
    pub fn exists(&self) -> bool {
        self.file.is_some() || self.link.is_some()
    }

    /// Whether all of it is there.
    pub fn complete(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.pinned) && self.link.is_some()
    }
}

impl Reservation {
    fn read(slot: Slot) -> Result<Option<Self>, Error> {
        let path = slot.path();
        let read = netns::is_pinned(&path).and_then(|pinned| {
            let modified = fs::metadata(&path)?.modified()?;
            Ok(Self { pinned, age: modified.elapsed().unwrap_or_default() })
        });
        match read {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("look at", path)(error)),
        }
    }
}

/// The owner in a file that no namespace covers.
fn owner_in_file(slot: Slot) -> Result<Option<Owner>, Error> {
    let path = slot.path();
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Owner::parse(text.trim_end())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// The owner that the tap in the slot's namespace names: what is left when somebody removed the veth pair by hand.
fn owner_inside(slot: Slot) -> Result<Option<Owner>, Error> {
    let path = slot.path();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::file("open", path)(error)),
    };
    netns::on_own_thread(|| {
        netns::enter(&file).map_err(Error::file("enter", path))?;
        let tap = route::link(&mut Socket::route()?, TAP)?;
        Ok(tap.and_then(|tap| Owner::parse(tap.alias.as_deref()?)))
    })
}
