//! Whether all of a restored VM's memory has been read.
//!
//! A VMM that takes no page server reads its snapshot by itself: what the guest touches first, the rest behind its back.
//! Until it has read everything a snapshot would have holes.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wire::{Document, Host, Id};

use crate::section::Vm;
use crate::{Error, owner};

/// How often is looked: nothing tells when another process closes a descriptor.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LAST_LOOK: Duration = Duration::from_millis(200);

/// Waits until the memory of the document's VM is all there. The VM is left alone; whoever wants it to be done soon
/// leaves the guest running and its balloon as it is.
///
/// # Errors
/// `conflict` when it is not after `limit`: the VM goes on as before. `not_found` when the VMM has ended meanwhile;
/// `timeout` when a signal asks this program to end.
pub fn await_memory(document: &Document, host: &Host, limit: Duration) -> Result<(), wire::Error> {
    let id = document.id()?.ok_or_else(|| wire::Error::field("id", "missing"))?;
    Ok(await_of(&Vm::read(document)?, host, &id, limit)?)
}

/// Whether all memory is there, so that a snapshot can be taken. Always so of a VMM that takes its memory from a page
/// server: what is still missing is fetched then.
pub(crate) fn is_complete(vm: &Vm) -> Result<bool, Error> {
    if vm.driver.abilities().page_server {
        return Ok(true);
    }
    Ok(!has_userfaultfd(&format!("/proc/{}/fd", vm.process.pid))?)
}

pub(crate) fn await_of(vm: &Vm, host: &Host, id: &Id, limit: Duration) -> Result<(), Error> {
    let gone = || Error::Gone { id: id.to_string(), pid: vm.process.pid };
    let io = |source| Error::Io { what: "watch", path: format!("/proc/{}", vm.process.pid).into(), source };
    if !vm.is_alive(host, id)? {
        return Err(gone());
    }
    let process = vm.process.pidfd().map_err(io)?.ok_or_else(gone)?;
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_LOOK;
    loop {
        match is_complete(vm) {
            // A process that is ending has nothing open any more.
            Ok(true) if !owner::is_ending(vm.process.pid) => return Ok(()),
            Ok(_) if Instant::now() >= deadline => return Err(Error::Lazy),
            Ok(_) => {}
            // Seen for what it is below.
            Err(_) if !vm.process.is_alive() => {}
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(pause.min(left)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        fds.extend(sys::signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) | Ok(0) => pause = (pause * 2).min(LAST_LOOK),
            Err(errno) => return Err(io(errno.into())),
            Ok(_) if fds[0].any() == Some(true) => return Err(gone()),
            Ok(_) if sys::signals::pending().is_some() => {
                return Err(Error::Interrupted("read the rest of its memory".into()));
            }
            Ok(_) => {}
        }
    }
}

/// Whether a process has a userfaultfd open. Cloud Hypervisor has one from its restore until all memory is there.
fn has_userfaultfd(descriptors: &str) -> Result<bool, Error> {
    let entries = fs::read_dir(descriptors).map_err(Error::io("list", descriptors))?;
    // One that is closed meanwhile is none.
    let mut links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(links.any(|link| link == Path::new("anon_inode:[userfaultfd]")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_userfaultfd_among_the_descriptors_is_seen_and_nothing_else_is_taken_for_one() {
        assert!(!has_userfaultfd("/proc/self/fd").unwrap());
        let dir = tempfile::tempdir().unwrap();
        let fds = dir.path().to_str().unwrap();
        for (name, target) in [("0", "/dev/null"), ("3", "anon_inode:[eventfd]"), ("4", "/x[userfaultfd]")] {
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        }
        assert!(!has_userfaultfd(fds).unwrap());
        std::os::unix::fs::symlink("anon_inode:[userfaultfd]", dir.path().join("20")).unwrap();
        assert!(has_userfaultfd(fds).unwrap());
        assert!(has_userfaultfd("/proc/nonexistent/fd").is_err());
    }
}
