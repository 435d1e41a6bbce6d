//! The oracle: a paused guest's memory as the VMM's process holds it, against what a snapshot gives back.

use std::fs;
use std::io::IoSliceMut;
use std::ops::Range;
use std::path::Path;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;

/// Where a VMM holds its guest's memory.
#[derive(Debug)]
pub struct GuestMemory {
    pid: Pid,
    /// Where it may begin. The kernel merges mappings that touch and are alike (a thread's heap beside the guest's memory):
    /// then it is at one end of a mapping that is larger.
    starts: Vec<usize>,
    bytes: usize,
}

impl GuestMemory {
    /// Finds it among the process's mappings: in one that is anonymous (or a memfd), writable, and large enough. (A guest
    /// of at most 3 GiB has one region.)
    ///
    /// # Panics
    /// When there is none, or more than one.
    pub fn of(pid: i32, bytes: usize) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process's mappings");
        let found: Vec<_> =
            maps.lines().filter_map(writable).filter(|range| range.end - range.start >= bytes).collect();
        assert_eq!(found.len(), 1, "mappings that can hold {bytes} bytes in process {pid}:\n{maps}");
        let mut starts = vec![found[0].start, found[0].end - bytes];
        starts.dedup();
        Self { pid: Pid::from_raw(pid), starts, bytes }
    }

    /// Reads all of it, once for each place where it may be. Unlike a read of /proc/PID/mem, which fails there, this
    /// waits for pages that the page server has yet to bring.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn read(&self) -> Vec<Vec<u8>> {
        self.starts.iter().map(|start| self.read_at(*start)).collect()
    }

    fn read_at(&self, start: usize) -> Vec<u8> {
        let mut memory = vec![0; self.bytes];
        for (n, chunk) in memory.chunks_mut(CHUNK).enumerate() {
            let mut done = 0;
            while done < chunk.len() {
                let from = RemoteIoVec { base: start + n * CHUNK + done, len: chunk.len() - done };
                let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut chunk[done..])], &[from])
                    .unwrap_or_else(|errno| panic!("guest memory at {:#x}: {errno}", from.base));
                assert_ne!(read, 0, "guest memory at {:#x}: nothing", from.base);
                done += read;
            }
        }
        memory
    }
}

/// The address range of a mapping that is anonymous or a memfd's, and writable.
fn writable(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let path = words.nth(3).unwrap_or("");
    let (start, end) = range.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    (rights.starts_with("rw") && (path.is_empty() || path.starts_with("/memfd:"))).then_some(range)
}

/// Finds `image`, an unpacked memory image, to be exactly what was read at one of the places. Gives which.
///
/// # Panics
/// When it is at none.
pub fn find(what: &str, places: &[Vec<u8>], image: &Path) -> usize {
    let unpacked = fs::read(image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
    match places.iter().position(|memory| *memory == unpacked) {
        Some(place) => place,
        None => {
            panic!("{}", places.iter().map(|memory| differences(what, memory, &unpacked)).collect::<String>())
        }
    }
}

/// Which pages differ and how.
fn differences(what: &str, memory: &[u8], unpacked: &[u8]) -> String {
    let pages = memory.chunks(PAGE).zip(unpacked.chunks(PAGE)).enumerate();
    let wrong: Vec<_> = pages.filter(|(_, (memory, image))| memory != image).collect();
    let zero = |page: &[u8]| page.iter().all(|&byte| byte == 0);
    let stale = wrong.iter().filter(|(_, (memory, _))| zero(memory)).count();
    let lost = wrong.iter().filter(|(_, (_, image))| zero(image)).count();
    let first: Vec<_> = wrong.iter().take(8).map(|(page, _)| page).collect();
    format!(
        "{what}: {} bytes in the guest, {} unpacked; {} pages differ, the first of them {first:?}; {stale} are zero in the \
         guest and not in the image, {lost} are zero in the image and not in the guest\n",
        memory.len(),
        unpacked.len(),
        wrong.len()
    )
}
