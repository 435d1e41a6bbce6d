//! What memory must hold: every byte follows from a seed and its offset.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are of one kind: an ordinary page.
pub(crate) const GRAIN: usize = 4096;

/// Grains in a run that is all hole, all zeros, or mixed.
const RUN: u64 = 16;

/// Grains in 2 MiB: the fourth 2 MiB are a hole, so that a huge page is one, too.
const HUGE: u64 = 512;

/// An image of memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Model {
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Zeros, and not in the file.
    Hole,
    /// Zeros that are in the file.
    Zeros,
    /// Zeros but for the first byte.
    First,
    /// Zeros but for the last byte.
    Last,
    Full,
}

impl Model {
    fn kind(self, grain: u64) -> Kind {
        if grain / HUGE == 3 {
            return Kind::Hole;
        }
        match mix(self.seed, grain / RUN) % 8 {
            0 => Kind::Hole,
            1 => Kind::Zeros,
            2 | 3 => match mix(!self.seed, grain) % 6 {
                0 => Kind::Hole,
                1 => Kind::Zeros,
                2 => Kind::First,
                3 => Kind::Last,
                _ => Kind::Full,
            },
            _ => Kind::Full,
        }
    }

    /// The bytes from `offset` on, a multiple of [`GRAIN`], whole grains.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        for (index, grain_bytes) in bytes.chunks_exact_mut(GRAIN).enumerate() {
            let grain = offset / GRAIN as u64 + index as u64;
            grain_bytes.fill(0);
            match self.kind(grain) {
                Kind::Hole | Kind::Zeros => {}
                Kind::First => grain_bytes[0] = 0xf1,
                Kind::Last => grain_bytes[GRAIN - 1] = 0x1a,
                Kind::Full => {
                    for (word, place) in grain_bytes.chunks_exact_mut(8).enumerate() {
                        place.copy_from_slice(&mix(self.seed ^ grain << 20, word as u64).to_le_bytes());
                    }
                }
            }
        }
    }

    /// Writes the image as a file of `size` bytes, with its holes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn write(self, file: &File, size: u64) -> io::Result<()> {
        file.set_len(size)?;
        let mut bytes = [0; GRAIN];
        for grain in (0..size / GRAIN as u64).filter(|&grain| self.kind(grain) != Kind::Hole) {
            let offset = grain * GRAIN as u64;
            self.fill(offset, &mut bytes);
            file.write_all_at(&bytes, offset)?;
        }
        Ok(())
    }
}

/// One number of the sequence that belongs to `seed` (splitmix64).
pub(crate) fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed
        .wrapping_mul(0xd134_2543_de82_ef95)
        .wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Random numbers, the same on every run.
#[derive(Debug)]
pub(crate) struct Random {
    pub seed: u64,
    pub count: u64,
}

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.count += 1;
        (mix(self.seed, self.count) % limit as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_file_is_what_the_model_says_and_has_holes() {
        let model = Model { seed: 1 };
        let size = 2048 * GRAIN;
        let mut file = tempfile::tempfile().unwrap();
        model.write(&file, size as u64).unwrap();
        let mut expected = vec![0xee; size];
        model.fill(0, &mut expected);
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert!(found == expected);
        let data: u64 = sys::sparse::data(&file).map(|run| run.unwrap()).map(|run| run.end - run.start).sum();
        assert!(data < size as u64);
    }

    #[test]
    fn every_kind_of_page_occurs_and_no_two_full_ones_are_alike() {
        let model = Model { seed: 1 };
        let kinds: Vec<_> = (0..2048).map(|grain| model.kind(grain)).collect();
        for kind in [Kind::Hole, Kind::Zeros, Kind::First, Kind::Last, Kind::Full] {
            assert!(kinds.iter().filter(|&&other| other == kind).count() >= 20, "{kind:?}");
        }
        let mut full: Vec<_> = (0..2048)
            .filter(|&grain| model.kind(grain) == Kind::Full)
            .map(|grain| {
                let mut bytes = vec![0; GRAIN];
                model.fill(grain * GRAIN as u64, &mut bytes);
                bytes
            })
            .collect();
        let count = full.len();
        full.sort_unstable();
        full.dedup();
        assert_eq!(full.len(), count);
    }
}
