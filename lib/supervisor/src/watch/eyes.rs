//! What wakes the watch: documents that change, processes that end, threads with news, a signal, and the time.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use wire::{Error, Host, Id, Kind};

const DOCUMENT: &str = "sandbox.json";

/// Where it looks.
pub struct Eyes {
    inotify: Inotify,
    all: PathBuf,
    root: WatchDescriptor,
    dirs: HashMap<WatchDescriptor, Id>,
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
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).map_err(failed("make an inotify"))?;
        let coming = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let going = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        let root = inotify.add_watch(&all, coming | going).map_err(failed("watch the sandboxes"))?;
        Ok(Self { inotify, all, root, dirs: HashMap::new() })
    }

    /// Looks at this sandbox's document from now on. One that is gone already is seen as such when it is next read.
    pub fn add(&mut self, id: &Id) {
        // Documents are renamed into place.
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(&self.all.join(id.as_str()), flags) {
            Ok(watch) => drop(self.dirs.insert(watch, id.clone())),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            // Past fs.inotify.max_user_watches, say. All documents are read at every round.
            Err(errno) => log::warn!("{id}: changes will be seen late: {errno}"),
        }
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
        fds.push(readable(self.inotify.as_fd()));
        fds.push(readable(bell));
        fds.extend(signals.map(readable));
        match poll(&mut fds, timeout(until)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed("wait")(errno)),
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
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(failed("read what inotify tells")(errno)),
            };
            for event in events {
                let name = event.name.as_ref().and_then(|name| name.to_str());
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    seen.lost = true;
                } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    self.dirs.remove(&event.wd);
                } else if event.wd == self.root {
                    let id = name.and_then(|name| Id::new(name).ok());
                    // Before it is read: what is written after that is seen.
                    id.iter().for_each(|id| self.add(id));
                    seen.changed.extend(id);
                } else if name == Some(DOCUMENT) {
                    seen.changed.extend(self.dirs.get(&event.wd).cloned());
                }
            }
        }
    }
}

/// Rounded up to milliseconds: woken early, there would be nothing to do yet.
fn timeout(until: Instant) -> PollTimeout {
    let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
    PollTimeout::try_from(left.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| {
        let message = format!("cannot {what}");
        Error::new(Kind::of_errno(errno), "watch.kernel", message).detail(errno).errno(errno as i32)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn sandboxes_that_come_change_and_go_are_seen_and_other_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let mut eyes = Eyes::new(&Host::new(root.path(), root.path().join("run"))).unwrap();
        let bell = EventFd::new().unwrap();
        let look = |eyes: &mut Eyes| {
            let until = Instant::now() + Duration::from_millis(20);
            let seen = eyes.wait(&[], bell.as_fd(), None, until).unwrap();
            seen.changed.into_iter().map(|id| id.to_string()).collect::<Vec<_>>()
        };
        let dir = root.path().join("sandboxes/sb-1");
        fs::create_dir(&dir).unwrap();
        assert_eq!(look(&mut eyes), ["sb-1"]);
        eyes.add(&Id::new("absent").unwrap());
        fs::write(dir.join("sandbox.new"), "{}").unwrap();
        fs::create_dir(root.path().join("sandboxes/.no-id")).unwrap();
        assert_eq!(look(&mut eyes), [""; 0]);
        fs::rename(dir.join("sandbox.new"), dir.join(DOCUMENT)).unwrap();
        assert_eq!(look(&mut eyes), ["sb-1"]);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(look(&mut eyes), ["sb-1"]);
        assert!(eyes.dirs.is_empty());
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
