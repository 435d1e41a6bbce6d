//! What a server knows of one VM, in memory that outlives the server: a memfd that its guardian holds too. A successor goes
//! on from it (docs/wrenn-uffd.md, "When something dies").
//!
//! In words of 8 bytes:
//!
//! | words | what |
//! | --- | --- |
//! | 0 | [`MAGIC`], with the version of this layout |
//! | 1 | how many regions there are |
//! | 2, 3, 4 | the VMM's pid and start time, and the how manieth of its service it is |
//! | 8 to 31 | counters, see [`Counter`] |
//! | 32 to 63 | faults answered, by the number of the answer's [`Kind`] |
//! | 64 to 319 | the messages of the last read(2), see [`sys::uffd::messages`] |
//! | 512 to 1535 | of each region: address, size, offset, page size |
//! | 1536 on | of each region: three sets of pages (settled, removed, poisoned), one bit a page, and the epochs, 32 bits a page, each beginning with a whole word |
//!
//! Behind them, outside the mapping: the directory of each snapshot dumped so far, each ended by a NUL. A set or a counter
//! is only ever written by the one server there is.

use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use sys::process::Process;
use sys::shared::Shared;

use crate::Region;
use crate::trace::Kind;

/// "wrennpf" and the version.
const MAGIC: u64 = u64::from_be_bytes(*b"wrennpf\x01");

/// What the kernel shows it as.
const NAME: &str = "wrenn-uffd";

const REGION_COUNT: usize = 1;
const PEER: Range<usize> = 2..4;
const CLIENT: usize = 4;
const MESSAGES: Range<usize> = 64..320;
const REGIONS: usize = 512;
const REGION_WORDS: usize = 4;
const SETS: usize = REGIONS + REGION_WORDS * crate::region::REGIONS;

/// What is counted, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Counter {
    Faults = 8,
    Copied = 9,
    Zeroed = 10,
    Prefetched = 11,
    Around = 12,
    CopiedBytes = 13,
    ZeroedBytes = 14,
    Rereads = 15,
    PrefetchedBytes = 17,
    /// What happened that cannot be followed: 1 a move, 2 a fork.
    Refused = 16,
}

/// Where faults answered are counted.
const ANSWERS: usize = 32;

/// One VM's state.
#[derive(Debug, Clone)]
pub(crate) struct State(Arc<Shared>);

/// How the link of such a descriptor begins, in /proc/PID/fd.
pub(crate) fn link() -> String {
    format!("/memfd:{NAME} ")
}

/// Where a region's sets lie, in words.
struct Place {
    settled: Range<usize>,
    removed: Range<usize>,
    poisoned: Range<usize>,
    epochs: Range<usize>,
}

impl Place {
    fn at(start: usize, region: &Region) -> Self {
        let words = region.pages().div_ceil(64) as usize;
        let set = |index: usize| start + index * words..start + (index + 1) * words;
        let epochs = start + 3 * words..start + 3 * words + region.pages().div_ceil(2) as usize;
        Self { settled: set(0), removed: set(1), poisoned: set(2), epochs }
    }

    /// Those of all regions, in order.
    fn all(regions: &[Region]) -> impl Iterator<Item = Self> {
        regions.iter().scan(SETS, |start, region| {
            let place = Self::at(*start, region);
            *start = place.epochs.end;
            Some(place)
        })
    }

    fn words(regions: &[Region]) -> usize {
        Self::all(regions).last().map_or(SETS, |last| last.epochs.end)
    }
}

/// Words of a state, by their place.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    state: State,
    place: Range<usize>,
}

impl Words {
    pub fn get(&self) -> &[AtomicU64] {
        &self.state.0.words()[self.place.clone()]
    }

    /// The same as twice as many halves.
    pub fn halves(&self) -> &[AtomicU32] {
        &self.state.0.halves()[self.place.start * 2..self.place.end * 2]
    }
}

/// The sets of one region.
pub(crate) struct Sets {
    pub settled: Words,
    pub removed: Words,
    pub poisoned: Words,
    pub epochs: Words,
}

impl State {
    /// The state of a VM of which nothing is known but its regions.
    pub fn new(regions: &[Region]) -> io::Result<Self> {
        let shared = Shared::create(NAME, Place::words(regions))?;
        // A reader that is killed while the kernel waits for a page to put a message into would lose the message.
        shared.pin(SETS);
        let words = shared.words();
        for (index, region) in regions.iter().enumerate() {
            let Region { address, size, offset, page_size } = *region;
            let at = REGIONS + index * REGION_WORDS;
            [address, size, offset, page_size]
                .into_iter()
                .enumerate()
                .for_each(|(word, value)| words[at + word].store(value, Relaxed));
        }
        words[REGION_COUNT].store(regions.len() as u64, Relaxed);
        words[0].store(MAGIC, Relaxed);
        Ok(Self(Arc::new(shared)))
    }

    /// Takes over what another process has written, with the regions it was about.
    pub fn open(fd: OwnedFd) -> io::Result<(Self, Vec<Region>)> {
        let strange = || io::Error::from(io::ErrorKind::InvalidData);
        let head = Shared::open(fd.try_clone()?, SETS)?;
        let word = |index: usize| head.words()[index].load(Relaxed);
        if word(0) != MAGIC || word(REGION_COUNT) > crate::region::REGIONS as u64 {
            return Err(strange());
        }
        let regions: Vec<Region> = (0..word(REGION_COUNT) as usize)
            .map(|index| {
                let at = REGIONS + index * REGION_WORDS;
                let [address, size, offset, page_size] = [0, 1, 2, 3].map(|part| word(at + part));
                Region { address, size, offset, page_size }
            })
            .collect();
        if regions.iter().any(|region| region.check().is_err()) {
            return Err(strange());
        }
        let shared = Shared::open(fd, Place::words(&regions))?;
        shared.pin(SETS);
        Ok((Self(Arc::new(shared)), regions))
    }

    /// Notes whose memory it is about, and the how manieth VMM of its service that is.
    pub fn set_vm(&self, peer: &Process, client: u64) {
        self.0.words()[PEER.start].store(peer.pid as u64, Relaxed);
        self.0.words()[PEER.start + 1].store(peer.start_time, Relaxed);
        self.0.words()[CLIENT].store(client, Relaxed);
    }

    /// The how manieth VMM it is about.
    pub fn client(&self) -> u64 {
        self.0.words()[CLIENT].load(Relaxed)
    }

    /// Whose memory it is about.
    pub fn peer(&self) -> io::Result<Process> {
        let word = |index: usize| self.0.words()[PEER.start + index].load(Relaxed);
        Ok(Process { pid: word(0) as i32, start_time: word(1), boot_id: sys::process::boot_id()? })
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Where read(2) puts its messages.
    pub fn messages(&self) -> &[AtomicU64] {
        &self.0.words()[MESSAGES]
    }

    pub fn count(&self, counter: Counter) -> u64 {
        self.0.words()[counter as usize].load(Relaxed)
    }

    pub fn set(&self, counter: Counter, value: u64) {
        self.0.words()[counter as usize].store(value, Relaxed);
    }

    pub fn add(&self, counter: Counter, more: u64) {
        self.set(counter, self.count(counter) + more);
    }

    /// A fault was answered so.
    pub fn answered(&self, kind: Kind) {
        let word = &self.0.words()[ANSWERS + kind as usize % 32];
        word.store(word.load(Relaxed) + 1, Relaxed);
    }

    /// How many faults were answered so.
    pub fn answers(&self, kind: Kind) -> u64 {
        self.0.words()[ANSWERS + kind as usize % 32].load(Relaxed)
    }

    /// The sets of all regions, in order.
    pub fn sets(&self, regions: &[Region]) -> impl Iterator<Item = Sets> {
        let state = self.clone();
        let words = move |place| Words { state: state.clone(), place };
        Place::all(regions).map(move |Place { settled, removed, poisoned, epochs }| Sets {
            settled: words(settled),
            removed: words(removed),
            poisoned: words(poisoned),
            epochs: words(epochs),
        })
    }

    /// The directories of the snapshots dumped so far. What a writer that died has not finished does not count.
    pub fn dumps(&self) -> io::Result<Vec<PathBuf>> {
        let mut bytes = vec![0; (self.0.file().metadata()?.len() - self.end()) as usize];
        self.0.file().read_exact_at(&mut bytes, self.end())?;
        bytes.truncate(bytes.iter().rposition(|&byte| byte == 0).map_or(0, |last| last + 1));
        let paths = bytes.split(|&byte| byte == 0).filter(|path| !path.is_empty());
        Ok(paths.map(|path| OsStr::from_bytes(path).into()).collect())
    }

    /// Adds one. `dumped` are those that are there.
    pub fn add_dump(&self, dumped: &[PathBuf], dir: &Path) -> io::Result<()> {
        let end: usize = dumped.iter().map(|path| path.as_os_str().len() + 1).sum();
        let mut bytes = dir.as_os_str().to_owned().into_vec();
        bytes.push(0);
        self.0.file().write_all_at(&bytes, self.end() + end as u64)
    }

    /// The end of what is mapped, in bytes.
    fn end(&self) -> u64 {
        self.0.words().len() as u64 * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_finds_regions_peer_counters_sets_and_dumps() {
        let region = |pages: u64, offset| Region {
            address: 4096 + offset,
            size: pages * 4096,
            offset,
            page_size: 4096,
        };
        let regions = [region(100, 0), region(1, 1 << 30)];
        let first = State::new(&regions).unwrap();
        let me = Process::current().unwrap();
        first.set_vm(&me, 3);
        first.add(Counter::Copied, 7);
        let sets: Vec<_> = first.sets(&regions).collect();
        sets[0].epochs.halves()[99].store(5, Relaxed);
        sets[1].settled.get()[0].store(6, Relaxed);
        first.add_dump(&[], Path::new("/gen-1")).unwrap();
        first.add_dump(&["/gen-1".into()], Path::new("/gen-2")).unwrap();
        // One whose writer died.
        first.0.file().write_all_at(b"/gen-", first.end() + 14).unwrap();
        let (second, found) = State::open(first.as_fd().try_clone_to_owned().unwrap()).unwrap();
        drop((first, sets));
        assert_eq!(found, regions);
        assert_eq!((second.peer().unwrap(), second.client()), (me, 3));
        assert_eq!(second.count(Counter::Copied), 7);
        let sets: Vec<_> = second.sets(&regions).collect();
        assert_eq!(sets[0].epochs.halves()[99].load(Relaxed), 5);
        assert_eq!(sets[1].settled.get()[0].load(Relaxed), 6);
        let dumps = second.dumps().unwrap();
        assert_eq!(dumps, [PathBuf::from("/gen-1"), "/gen-2".into()]);
        second.add_dump(&dumps, Path::new("/x")).unwrap();
        assert_eq!(second.dumps().unwrap().last(), Some(&"/x".into()));
        assert!(
            State::open(Shared::create("other", SETS).unwrap().file().try_clone().unwrap().into()).is_err()
        );
    }
}
