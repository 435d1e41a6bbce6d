//! The oracle: a paused guest's memory as the VMM's process holds it, against what a snapshot gives back.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::path::Path;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;

/// Where a VMM holds its guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct GuestMemory {
    pid: Pid,
    base: usize,
    bytes: usize,
}

impl GuestMemory {
    /// Finds it among the process's mappings: the one that is anonymous (or a memfd), writable and of this size. (A guest
    /// of at most 3 GiB has one region.)
    ///
    /// # Panics
    /// When there is none, or more than one.
    pub fn of(pid: i32, bytes: usize) -> Self {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process's mappings");
        let found: Vec<usize> = maps.lines().filter_map(|line| candidate(line, bytes)).collect();
        assert_eq!(found.len(), 1, "mappings of {bytes} bytes in process {pid}:\n{maps}");
        Self { pid: Pid::from_raw(pid), base: found[0], bytes }
    }

    /// Reads all of it. Unlike a read of /proc/PID/mem, which fails there, this waits for pages that the page server
    /// has yet to bring.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn read(&self) -> Vec<u8> {
        let mut memory = vec![0; self.bytes];
        for (n, chunk) in memory.chunks_mut(CHUNK).enumerate() {
            let mut done = 0;
            while done < chunk.len() {
                let from = RemoteIoVec { base: self.base + n * CHUNK + done, len: chunk.len() - done };
                let read = process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut chunk[done..])], &[from])
                    .unwrap_or_else(|errno| panic!("guest memory at {:#x}: {errno}", from.base));
                assert_ne!(read, 0, "guest memory at {:#x}: nothing", from.base);
                done += read;
            }
        }
        memory
    }
}

/// The address where a mapping holds guest memory of this size: at its start, with or without guard pages mapped after
/// it with other rights.
fn candidate(line: &str, bytes: usize) -> Option<usize> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let path = words.nth(3).unwrap_or("");
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let ours = rights.starts_with("rw") && (path.is_empty() || path.starts_with("/memfd:"));
    (ours && end - start == bytes).then_some(start)
}

/// Finds `image`, an unpacked memory image, to be exactly this memory.
///
/// # Panics
/// When it is not, telling which pages differ and how.
pub fn assert_same(what: &str, memory: &[u8], image: &Path) {
    let mut file = File::open(image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
    let mut unpacked = Vec::with_capacity(memory.len());
    file.read_to_end(&mut unpacked).expect("the image");
    assert_eq!(unpacked.len(), memory.len(), "{what}: the image's size");
    if unpacked == memory {
        return;
    }
    let pages = memory.chunks(PAGE).zip(unpacked.chunks(PAGE)).enumerate();
    let wrong: Vec<_> = pages.filter(|(_, (memory, image))| memory != image).collect();
    let zero = |page: &[u8]| page.iter().all(|&byte| byte == 0);
    let stale = wrong.iter().filter(|(_, (memory, _))| zero(memory)).count();
    let lost = wrong.iter().filter(|(_, (_, image))| zero(image)).count();
    let first: Vec<_> = wrong.iter().take(8).map(|(page, _)| page).collect();
    panic!(
        "{what}: {} pages differ, the first of them {first:?}; {stale} are zero in the guest and not in the image, \
         {lost} are zero in the image and not in the guest",
        wrong.len()
    );
}
