//! A dump as it is being written: where it can be interrupted.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::program::LIMIT;

/// The raw memory's name while it is not packed; and what Cloud Hypervisor calls it while it writes it.
const RAW: [&str; 2] = ["memfile.raw", "memory-ranges"];

/// Watches a sandbox's directory for the next generation. Made before the pause, so that nothing happens unseen.
#[derive(Debug)]
pub struct DumpWatch {
    watch: Inotify,
    sandbox: PathBuf,
    known: Vec<String>,
}

impl DumpWatch {
    /// Watches this directory of a sandbox.
    ///
    /// # Panics
    /// When it cannot be watched.
    pub fn new(sandbox: &Path) -> Self {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        watch.add_watch(sandbox, AddWatchFlags::IN_CREATE).expect("a watch on the sandbox");
        Self { watch, sandbox: sandbox.into(), known: crate::kernel::list(sandbox) }
    }

    /// Waits until a new generation's raw memory is there and so many of its bytes are written. Gives the generation, or
    /// `None` when `over` says that there is no dump to wait for any more.
    ///
    /// # Panics
    /// When nothing comes of it.
    pub fn written(&self, bytes: u64, mut over: impl FnMut() -> bool) -> Option<PathBuf> {
        let deadline = Instant::now() + LIMIT;
        let mut watched = (false, false);
        loop {
            if let Some(dir) = self.generation() {
                // A watch is put on each thing once it is there, and then it is looked at: nothing is between the two.
                let names = RAW.map(|name| dir.join(name));
                let raw = names.iter().find(|path| path.exists()).unwrap_or(&names[0]);
                watched.0 = watched.0 || self.add(&dir, AddWatchFlags::IN_CREATE);
                watched.1 = watched.1 || self.add(raw, AddWatchFlags::IN_MODIFY);
                if raw.metadata().is_ok_and(|metadata| metadata.blocks() * 512 >= bytes) {
                    return Some(dir);
                }
            }
            if over() {
                return None;
            }
            assert!(Instant::now() < deadline, "no dump of {bytes} bytes in {}", self.sandbox.display());
            // Not for longer: whether it is over is nothing that the watch would tell.
            let timeout = PollTimeout::try_from(Duration::from_millis(50)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.watch.as_fd(), PollFlags::POLLIN)], timeout);
            let _ = self.watch.read_events();
        }
    }

    fn add(&self, path: &Path, what: AddWatchFlags) -> bool {
        self.watch.add_watch(path, what).is_ok()
    }

    fn generation(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(&self.sandbox).ok()?.flatten();
        let new = |name: &OsStr| {
            let name = name.to_string_lossy();
            name.starts_with("gen-") && !self.known.iter().any(|known| *known == name)
        };
        entries.map(|entry| entry.file_name()).find(|name| new(name)).map(|name| self.sandbox.join(name))
    }
}
