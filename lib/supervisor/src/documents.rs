//! The documents of a root's sandboxes, followed by inotify: they are the truth, whoever changes them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use wire::{Host, Id};

const DOCUMENT: &str = "sandbox.json";

/// Who is told of every change.
#[derive(Debug)]
pub struct Documents {
    inotify: Inotify,
    all: PathBuf,
    root: WatchDescriptor,
    dirs: HashMap<WatchDescriptor, Id>,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A sandbox's document is another.
    Document(Id),
    /// A sandbox's directory is there, and followed from now on: what is read of it now is not missed later.
    Came(Id),
    /// A sandbox's directory is gone.
    Went(Id),
    /// More than the kernel could remember.
    Lost,
}

impl Documents {
    /// Follows this root's directory of sandboxes, which must be there; none of the sandboxes in it yet.
    ///
    /// # Errors
    /// What inotify said.
    pub fn new(host: &Host) -> io::Result<Self> {
        let all = host.root().join("sandboxes");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let coming = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let going = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        let root = inotify.add_watch(&all, coming | going | AddWatchFlags::IN_ONLYDIR)?;
        Ok(Self { inotify, all, root, dirs: HashMap::new() })
    }

    /// Follows this sandbox's document from now on. One that is gone already is seen as such when it is next read.
    pub fn follow(&mut self, id: &Id) {
        // Documents are renamed into place.
        let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(&self.all.join(id.as_str()), flags) {
            Ok(watch) => drop(self.dirs.insert(watch, id.clone())),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            // Past fs.inotify.max_user_watches, say.
            Err(errno) => log::warn!("{id}: changes are not seen as they happen: {errno}"),
        }
    }

    /// What has changed since, in order; nothing when nothing has. The descriptor is readable while there is more.
    ///
    /// # Errors
    /// What inotify said.
    pub fn read(&mut self) -> io::Result<Vec<Change>> {
        match self.inotify.read_events() {
            Ok(events) => Ok(events.iter().filter_map(|event| self.change(event)).collect()),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Vec::new()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn change(&mut self, event: &InotifyEvent) -> Option<Change> {
        let has = |flags| event.mask.intersects(flags);
        let name = event.name.as_ref().and_then(|name| name.to_str());
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            Some(Change::Lost)
        } else if has(AddWatchFlags::IN_IGNORED) {
            self.dirs.remove(&event.wd);
            None
        } else if event.wd != self.root {
            let id = self.dirs.get(&event.wd).filter(|_| name == Some(DOCUMENT))?;
            Some(Change::Document(id.clone()))
        } else {
            let id = Id::new(name?).ok()?;
            if has(AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM) {
                return Some(Change::Went(id));
            }
            self.follow(&id);
            Some(Change::Came(id))
        }
    }
}

impl AsFd for Documents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn sandboxes_that_come_change_and_go_are_told_in_order_and_other_files_are_not() {
        let root = tempfile::tempdir().unwrap();
        let all = root.path().join("sandboxes");
        fs::create_dir(&all).unwrap();
        let mut documents = Documents::new(&Host::new(root.path(), root.path().join("run"))).unwrap();
        let id = || Id::new("sb-1").unwrap();
        let dir = all.join("sb-1");
        fs::create_dir(&dir).unwrap();
        assert_eq!(documents.read().unwrap(), [Change::Came(id())]);
        documents.follow(&Id::new("absent").unwrap());
        fs::write(dir.join("sandbox.new"), "{}").unwrap();
        fs::create_dir(all.join(".no-id")).unwrap();
        assert_eq!(documents.read().unwrap(), []);
        fs::rename(dir.join("sandbox.new"), dir.join(DOCUMENT)).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(documents.read().unwrap(), [Change::Document(id()), Change::Went(id())]);
        assert!(documents.dirs.is_empty());
        fs::create_dir(root.path().join("sb-1")).unwrap();
        fs::rename(root.path().join("sb-1"), &dir).unwrap();
        fs::write(dir.join("sandbox.new"), "{}").unwrap();
        assert_eq!(documents.read().unwrap(), [Change::Came(id())], "with its document yet to come");
        fs::rename(dir.join("sandbox.new"), dir.join(DOCUMENT)).unwrap();
        fs::rename(&dir, root.path().join("sb-1")).unwrap();
        assert_eq!(documents.read().unwrap(), [Change::Document(id()), Change::Went(id())]);
    }
}
