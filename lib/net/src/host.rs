//! What all slots of a host share: the lock, the directory of namespaces, forwarding, the nftables table.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use sys::lock::Lock;

use crate::slot::NETNS_DIR;
use crate::{Error, nft};

/// Held while what all slots share is made, and while it is decided that no slot is left. Roots have their own locks; this one is
/// the host's.
const LOCK: &str = "/run/lock/wrenn-net.lock";
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The capabilities that building a slot takes, with their bits (linux/capability.h).
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];

/// Refuses what this process or this host can never do, before anything is touched.
pub(crate) fn check() -> Result<(), Error> {
    check_privilege()?;
    sys::tap::Tun::open().map_err(Error::NoTun)?;
    Ok(())
}

/// Refuses a process without the capabilities.
pub(crate) fn check_privilege() -> Result<(), Error> {
    let path = "/proc/thread-self/status";
    let status = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    match CAPABILITIES.iter().find(|(_, bit)| effective & (1 << bit) == 0) {
        Some((name, _)) => Err(Error::Privilege(name)),
        None => Ok(()),
    }
}

/// Takes the host's lock.
pub(crate) fn lock() -> Result<Lock, Error> {
    let path = Path::new(LOCK);
    let taken = fs::create_dir_all("/run/lock").and_then(|()| sys::lock::exclusive(path, LOCK_WAIT));
    taken.map_err(Error::file("lock", path))
}

/// Makes what all slots need, where it is missing: forwarding and the nftables table. The lock keeps it from a `gc` that
/// has found no slot left and is about to take the table away.
pub(crate) fn prepare() -> Result<(), Error> {
    let _lock = lock()?;
    forward()?;
    nft::host_table()
}

/// `/run/netns` as `ip netns` makes it: a shared mount, so that a namespace mounted there is seen, and one taken off is
/// gone, in every mount namespace that came of this one.
pub(crate) fn netns_dir() -> Result<(), Error> {
    let failed = |errno: Errno| Error::file("make a shared mount of", NETNS_DIR)(errno.into());
    let none = None::<&str>;
    let share = || match mount(none, NETNS_DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none) {
        Ok(()) => Ok(true),
        // Not a mount point yet.
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(failed(errno)),
    };
    fs::create_dir_all(NETNS_DIR).map_err(Error::file("make", NETNS_DIR))?;
    if share()? {
        return Ok(());
    }
    let _lock = lock()?;
    if !share()? {
        mount(Some(NETNS_DIR), NETNS_DIR, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).map_err(failed)?;
        share()?;
    }
    Ok(())
}

/// Switches IPv4 forwarding on in the network namespace of the calling thread: that is whose /proc/sys/net it sees.
/// It stays on: whoever else relies on it by then cannot be told.
pub(crate) fn forward() -> Result<(), Error> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let now = fs::read(path).map_err(Error::file("read", path))?;
    if now.starts_with(b"0") { fs::write(path, "1").map_err(Error::file("write", path)) } else { Ok(()) }
}
