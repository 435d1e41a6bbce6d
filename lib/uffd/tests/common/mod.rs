//! A VMM in small: memory of this process, registered and handed to the engine step by step, and an independent model of
//! what must be in it.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part")]

use std::time::Duration;

use sys::uffd::{Memory, Uffd};
use uffd::{Engine, Prefetch, Region, Step};
pub use wrenn_tests::pages::{PAGE, content, write as write_image};

pub const HUGE: usize = 2 << 20;

/// An image of so many pages, as a raw file.
pub fn image(pages: usize) -> snap::Image {
    let file = tempfile::NamedTempFile::new().unwrap();
    write_image(file.as_file(), pages);
    snap::Image::open_raw(file.path()).unwrap()
}

/// A page of memory as it is now.
pub fn page(memory: &Memory, page: usize) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    memory.read(page * PAGE, &mut bytes);
    bytes
}

/// Memory of so many pages over an image of the same size, and the engine that serves it. `None`, with the reason, where
/// this user may not have a userfaultfd.
pub fn served(pages: usize) -> Option<(Memory, Engine)> {
    let uffd = userfaultfd()?;
    let memory = Memory::map(pages * PAGE, false).unwrap();
    uffd.register(&memory, 0, memory.len()).unwrap();
    let region =
        Region { address: memory.address(), size: memory.len() as u64, offset: 0, page_size: PAGE as u64 };
    let mut engine = Engine::new(uffd, image(pages), vec![region]).unwrap();
    engine.plan(Prefetch::All, Vec::new());
    Some((memory, engine))
}

pub fn userfaultfd() -> Option<Uffd> {
    match Uffd::create() {
        Ok(uffd) => Some(uffd),
        Err(error) => {
            wrenn_tests::skip::here(format!("no userfaultfd for this user: {error}"));
            None
        }
    }
}

/// Waits until the engine has an event to read.
pub fn await_event(engine: &Engine) {
    let limit = Duration::from_secs(20);
    assert!(sys::process::readable(engine.uffd(), limit).unwrap(), "nothing happened");
}

/// Answers faults until none is left, going back to the events whenever a discard is in the way.
pub fn answer(engine: &mut Engine) {
    loop {
        engine.drain().unwrap();
        match engine.serve().unwrap() {
            Step::Done => return,
            Step::Again => {}
            step => panic!("{step:?}"),
        }
    }
}

/// Loads all that is left, in batches of so many bytes.
pub fn load_all(engine: &mut Engine, batch: u64) {
    loop {
        engine.drain().unwrap();
        match engine.prefetch(batch).unwrap() {
            Step::Done => return,
            Step::More | Step::Again => {}
            Step::Gone => panic!("gone"),
        }
    }
}

/// Serves until this thread has ended, and gives what it returned.
pub fn serve_while<T>(engine: &mut Engine, thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    while !thread.is_finished() {
        sys::process::readable(engine.uffd(), Duration::from_millis(1)).unwrap();
        answer(engine);
    }
    thread.join().unwrap()
}

/// Huge pages for as long as this lives: the kernel may give so many beyond its pool. Its pool stays as it is, as resizing
/// one that somebody else is resizing leaves the kernel's counts wrong.
pub struct HugePages {
    before: String,
    _turn: nix::fcntl::Flock<std::fs::File>,
}

impl HugePages {
    const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

    pub fn reserve(count: usize) -> Result<Self, String> {
        let said = |error: std::io::Error| format!("{}: {error}", Self::POOL);
        let read = |name: &str| std::fs::read_to_string(format!("{}/{name}", Self::POOL)).map_err(said);
        let pool = std::fs::File::open(Self::POOL).map_err(said)?;
        let lock = nix::fcntl::Flock::lock(pool, nix::fcntl::FlockArg::LockExclusive);
        let turn = lock.map_err(|(_, errno)| said(errno.into()))?;
        let before = read("nr_overcommit_hugepages")?.trim().to_owned();
        let surplus: usize = read("surplus_hugepages")?.trim().parse().map_err(|_| "no number".to_owned())?;
        let limit = (surplus + count).to_string();
        std::fs::write(format!("{}/nr_overcommit_hugepages", Self::POOL), limit).map_err(said)?;
        Ok(Self { before, _turn: turn })
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(format!("{}/nr_overcommit_hugepages", Self::POOL), &self.before);
    }
}
