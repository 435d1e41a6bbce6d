//! Random lives of a memory: written by vCPUs and devices, discarded, dumped in full and in part, with dumps that fail
//! and dumps that are lost.

use super::*;
use std::collections::BTreeSet;

const BYTES: u64 = 3 * MIB;
const PAGES: u64 = BYTES / PAGE;

/// xorshift64*: the same lives every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// What the memory must hold, and what a Diff of it must hold.
struct Model {
    content: Vec<u8>,
    /// Written since the last dump that succeeded.
    written: BTreeSet<u64>,
    /// Written between that one and the one before.
    before: BTreeSet<u64>,
}

struct Life {
    ram: Ram,
    model: Model,
    /// KVM's log.
    log: Vec<Vec<u64>>,
    random: Random,
}

impl Life {
    fn new(ram: Ram, content: Vec<u8>, seed: u64) -> Self {
        let model = Model { content, written: BTreeSet::new(), before: BTreeSet::new() };
        Self { ram, model, log: pages(&[], BYTES), random: Random(seed | 1) }
    }

    /// A few bytes, sometimes all of them zero.
    fn write(&mut self, by_vcpu: bool) {
        let start = self.random.below(BYTES);
        let length = self.random.below(3 * PAGE).min(BYTES - start) as usize;
        let value = self.random.below(3) as u8;
        let bytes = vec![value; length];
        if by_vcpu {
            // As a guest does: past the devices' bitmap.
            for (index, byte) in bytes.iter().enumerate() {
                let address = GuestAddress(start + index as u64);
                let place = self.ram.memory().get_host_address(address).unwrap();
                // SAFETY: inside guest memory, which nobody else uses.
                unsafe { place.write_volatile(*byte) };
            }
        } else {
            self.ram.memory().write_slice(&bytes, GuestAddress(start)).unwrap();
        }
        for page in (start / PAGE..(start + length as u64).div_ceil(PAGE)).filter(|_| length > 0) {
            self.model.written.insert(page);
            if by_vcpu {
                self.log[0][(page / 64) as usize] |= 1 << (page % 64);
            }
        }
        self.model.content[start as usize..][..length].copy_from_slice(&bytes);
    }

    fn discard(&mut self) {
        let first = self.random.below(PAGES);
        let count = 1 + self.random.below(16).min(PAGES - first - 1);
        self.ram.discard().discard(first * PAGE, count * PAGE).unwrap();
        self.model.content[(first * PAGE) as usize..][..(count * PAGE) as usize].fill(0);
        self.model.written.extend(first..first + count);
    }

    fn note(&mut self) {
        let log = std::mem::replace(&mut self.log, pages(&[], BYTES));
        self.ram.note_written(Some(&log));
    }

    fn dump(&mut self, kind: Kind, path: &Path) -> Result<Dumped, Error> {
        let _ = std::fs::remove_file(path);
        self.note();
        let dumped = self.ram.dump(kind, path)?;
        self.ram.forget_written();
        Ok(dumped)
    }
}

fn live(mut life: Life, mut published: Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let mut lost = false;
    for _ in 0..120 {
        match life.random.below(10) {
            0..4 => life.write(true),
            4..6 => life.write(false),
            6 => life.discard(),
            7 => {
                life.dump(Kind::Full, &path).unwrap();
                assert!(std::fs::read(&path).unwrap() == life.model.content, "a Full is all of it");
                life.model.before = std::mem::take(&mut life.model.written);
                lost = life.random.below(2) == 0 && !lost;
                if !lost {
                    published.clone_from(&life.model.content);
                }
            }
            8 => {
                life.dump(Kind::Diff, Path::new("/nonexistent/memory")).unwrap_err();
            }
            _ => {
                let held: BTreeSet<_> = life.model.written.union(&life.model.before).copied().collect();
                let dumped = life.dump(Kind::Diff, &path).unwrap();
                assert_eq!(dumped.bytes, held.len() as u64 * PAGE, "a Diff is what was written and no more");
                let mut image = published.clone();
                apply(&path, &mut image);
                assert!(image == life.model.content, "a Diff over what was published is all of it");
                life.model.before = std::mem::take(&mut life.model.written);
                // At most one dump in a row is lost: the next holds it too.
                lost = life.random.below(2) == 0 && !lost;
                if !lost {
                    published = image;
                }
            }
        }
        let mut now = vec![0; BYTES as usize];
        life.ram.memory().read_slice(&mut now, GuestAddress(0)).unwrap();
        assert!(now == life.model.content, "memory holds what was written");
    }
}

fn image(seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut image = vec![0; BYTES as usize];
    for page in image.chunks_mut(PAGE as usize).filter(|_| random.below(2) == 0) {
        page.fill(0x40 + seed as u8);
    }
    image
}

#[test]
fn a_booted_machines_dumps_are_exact_whatever_happens_between_them() {
    for seed in 0..12 {
        live(
            Life::new(Ram::fresh(BYTES).unwrap(), vec![0; BYTES as usize], seed * 7919),
            vec![0; BYTES as usize],
        );
    }
}

#[test]
fn a_machines_dumps_are_exact_when_its_memory_is_a_files_and_the_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    for seed in 0..12 {
        let image = image(seed);
        std::fs::write(&path, &image).unwrap();
        live(Life::new(Ram::of_file(BYTES, &path).unwrap(), image.clone(), seed * 104_729), image.clone());
        assert!(std::fs::read(&path).unwrap() == image);
    }
}

#[test]
fn a_machines_dumps_are_exact_when_its_memory_is_a_page_servers() {
    for seed in 0..12 {
        let image = image(seed);
        let Some(server) = served::Server::start(image.clone(), served::Manner::Keeps) else { return };
        let ram = Ram::served(BYTES, server.path()).unwrap();
        live(Life::new(ram, image.clone(), seed * 15_485_863), image);
        server.end();
    }
}
