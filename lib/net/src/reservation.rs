//! The file that makes a slot somebody's: `/run/netns/wrenn-ns-N`. It holds the owner from the moment it has a name, and
//! shows it again when the namespace is taken off it.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

use crate::netlink::{Socket, route};
use crate::slot::NETNS_DIR;
use crate::state::State;
use crate::{Error, Owner, Slot};

/// Takes the named slot, or the lowest free one.
pub(crate) fn reserve(owner: &Owner, wanted: Option<Slot>) -> Result<Slot, Error> {
    let file = unnamed(owner).map_err(Error::file("make a file in", NETNS_DIR))?;
    match wanted {
        Some(slot) if claim(&file, slot)? => Ok(slot),
        Some(slot) => Err(Error::SlotTaken { slot, by: holder(slot) }),
        None => {
            let taken = reserved()?;
            for slot in Slot::all().filter(|slot| !taken.contains(slot)) {
                if claim(&file, slot)? {
                    return Ok(slot);
                }
            }
            Err(Error::NoSlot)
        }
    }
}

/// The slots that have a file.
pub(crate) fn reserved() -> Result<HashSet<Slot>, Error> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(Error::file("read", NETNS_DIR)(error)),
    };
    Ok(entries.flatten().filter_map(|entry| Slot::of_netns(entry.file_name().to_str()?)).collect())
}

/// A file without a name yet, that says who owns it.
fn unnamed(owner: &Owner) -> io::Result<File> {
    let mut file =
        OpenOptions::new().write(true).mode(0o444).custom_flags(OFlag::O_TMPFILE.bits()).open(NETNS_DIR)?;
    writeln!(file, "{owner}")?;
    Ok(file)
}

/// Gives the file the slot's name. `false` when the name, or that of the slot's interface, is taken.
fn claim(file: &File, slot: Slot) -> Result<bool, Error> {
    // Not by if_nametoindex: for a name that does not exist it has the kernel start modprobe, twice.
    if route::link(&mut Socket::route()?, &slot.veth())?.is_some() {
        return Ok(false);
    }
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = slot.path();
    match linkat(AT_FDCWD, open.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(Error::file("make", path)(errno.into())),
    }
}

fn holder(slot: Slot) -> String {
    let owner = State::read(slot).ok().and_then(|state| state.owner);
    owner.map_or_else(|| format!("somebody else ({})", slot.path().display()), |owner| owner.to_string())
}
