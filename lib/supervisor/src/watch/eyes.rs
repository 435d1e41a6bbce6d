//! What wakes the watch: documents that change, processes that end, threads with news, a signal, and the time.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use wire::{Error, Host, Id, Kind};

use crate::documents::{Change, Documents};

/// Where it looks.
pub struct Eyes {
    documents: Documents,
}

/// What was seen.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Sandboxes whose document has changed, that are new, or gone.
    pub changed: BTreeSet<Id>,
    /// More has changed than the kernel could remember.
    pub lost: bool,
    /// SIGINT or SIGTERM.
    pub signal: bool,
    /// Threads have news.
    pub news: bool,
    /// Which of the processes have ended, by their place in the list.
    pub ended: Vec<usize>,
}

impl Eyes {
    /// Looks at this root's sandboxes. Their directory is made if there is none yet.
    pub fn new(host: &Host) -> Result<Self, Error> {
        let all = host.root().join("sandboxes");
        std::fs::create_dir_all(&all).map_err(|error| {
            let message = format!("cannot make {}", all.display());
            Error::new(Kind::of_io(&error), "watch.root", message).detail(error)
        })?;
        Ok(Self { documents: Documents::new(host).map_err(failed("watch the sandboxes"))? })
    }

    /// Looks at this sandbox's document from now on. All are read at every round, too.
    pub fn add(&mut self, id: &Id) {
        self.documents.follow(id);
    }

    /// Waits until there is something to see, at most until then.
    pub fn wait(
        &mut self,
        processes: &[BorrowedFd],
        bell: BorrowedFd,
        signals: Option<BorrowedFd>,
        until: Instant,
    ) -> Result<Seen, Error> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<PollFd> = processes.iter().map(|fd| readable(*fd)).collect();
        fds.push(readable(self.documents.as_fd()));
        fds.push(readable(bell));
        fds.extend(signals.map(readable));
        match poll(&mut fds, timeout(until)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed("wait")(errno.into())),
        }
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| fd.any() == Some(true));
        let count = processes.len();
        let mut seen = Seen {
            news: is_ready(count + 1),
            signal: is_ready(count + 2),
            ended: (0..count).filter(|index| is_ready(*index)).collect(),
            ..Seen::default()
        };
        if is_ready(count) {
            drop(fds);
            self.read(&mut seen)?;
        }
        Ok(seen)
    }

    fn read(&mut self, seen: &mut Seen) -> Result<(), Error> {
        for change in self.documents.read().map_err(failed("read what inotify tells"))? {
            match change {
                Change::Document(id) | Change::Came(id) | Change::Went(id) => drop(seen.changed.insert(id)),
                Change::Lost => seen.lost = true,
            }
        }
        Ok(())
    }
}

/// Rounded up to milliseconds: woken early, there would be nothing to do yet.
fn timeout(until: Instant) -> PollTimeout {
    let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    PollTimeout::try_from(left.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| {
        let (message, errno) = (format!("cannot {what}"), error.raw_os_error());
        let error = Error::new(Kind::of_io(&error), "watch.kernel", message).detail(error);
        errno.into_iter().fold(error, Error::errno)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn all_that_has_changed_is_seen_at_once_and_each_sandbox_once() {
        let root = tempfile::tempdir().unwrap();
        let mut eyes = Eyes::new(&Host::new(root.path(), root.path().join("run"))).unwrap();
        let bell = EventFd::new().unwrap();
        for id in ["sb-1", "sb-2"] {
            fs::create_dir(root.path().join("sandboxes").join(id)).unwrap();
        }
        fs::remove_dir(root.path().join("sandboxes/sb-1")).unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        let seen = eyes.wait(&[], bell.as_fd(), None, until).unwrap();
        let ids = ["sb-1", "sb-2"].map(|id| Id::new(id).unwrap());
        assert_eq!(seen, Seen { changed: ids.into(), ..Seen::default() });
        let seen = eyes.wait(&[], bell.as_fd(), None, Instant::now() + Duration::from_millis(20)).unwrap();
        assert_eq!(seen, Seen::default());
    }

    #[test]
    fn an_end_and_news_are_seen_and_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let mut eyes = Eyes::new(&Host::new(root.path(), root.path().join("run"))).unwrap();
        let fds: [EventFd; 3] = std::array::from_fn(|_| EventFd::new().unwrap());
        fds[1].write(1).unwrap();
        fds[2].write(1).unwrap();
        let processes = [fds[0].as_fd(), fds[1].as_fd()];
        let seen = eyes.wait(&processes, fds[2].as_fd(), None, Instant::now()).unwrap();
        assert_eq!(seen, Seen { ended: vec![1], news: true, ..Seen::default() });
    }
}
