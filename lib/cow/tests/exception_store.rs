//! The exception store is read as the kernel writes it, and an image is flattened as a model of the disk says: against a
//! writer of the format made for these tests from its description alone (FACTS: persistent format), sharing no code with
//! the reader.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use cow::exceptions::{Exception, StoreError, file_bytes, read, runs};
use cow::{Image, flatten};
use proptest::prelude::*;

const CHUNK: usize = 4096;

/// A CoW file as a kernel leaves it: chunks are given out in the order in which they are first written.
struct Kernel {
    bytes: Vec<u8>,
    /// Chunk of the image → chunk of the file.
    map: BTreeMap<u64, u64>,
    next: u64,
}

impl Kernel {
    fn new(origin_bytes: usize) -> Self {
        let mut bytes = vec![0; file_bytes(origin_bytes as u64) as usize];
        for (at, word) in [(0, 0x7041_6e53_u32), (4, 1), (8, 1), (12, 8)] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        // Chunk 0 is the header, chunk 1 the first metadata area: data begins at chunk 2.
        Self { bytes, map: BTreeMap::new(), next: 2 }
    }

    fn write(&mut self, old: u64, content: &[u8; CHUNK]) {
        let new = match self.map.get(&old) {
            Some(&new) => new,
            None => {
                let new = self.next;
                let index = self.map.len();
                let entry = (1 + (index / 256) * 257) * CHUNK + (index % 256) * 16;
                self.bytes[entry..entry + 8].copy_from_slice(&old.to_le_bytes());
                self.bytes[entry + 8..entry + 16].copy_from_slice(&new.to_le_bytes());
                self.map.insert(old, new);
                self.next += 1;
                if (self.next - 1).is_multiple_of(257) {
                    self.next += 1;
                }
                new
            }
        };
        let at = new as usize * CHUNK;
        self.bytes[at..at + CHUNK].copy_from_slice(content);
    }

    fn set(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

fn filled(byte: u8) -> [u8; CHUNK] {
    [byte; CHUNK]
}

#[test]
fn a_store_written_down_by_hand_is_read() {
    // Three writes, to chunks 5, 0 and 6 of an image of 8.
    let mut bytes = vec![0; 16 * CHUNK];
    bytes[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    for (at, (old, new)) in [(5_u8, 2_u8), (0, 3), (6, 4)].into_iter().enumerate() {
        bytes[CHUNK + at * 16] = old;
        bytes[CHUNK + at * 16 + 8] = new;
    }
    let found = read(bytes.as_slice(), 8 * CHUNK as u64).unwrap();
    let pairs: Vec<_> = found.iter().map(|found| (found.old, found.new)).collect();
    assert_eq!(pairs, [(0, 3), (5, 2), (6, 4)]);
}

#[test]
fn a_store_is_read_across_its_metadata_areas() {
    for count in [0, 1, 255, 256, 257, 511, 512, 513, 1000] {
        let mut kernel = Kernel::new(1000 * CHUNK);
        for at in 0..count {
            kernel.write((at * 7 + 3) % 1000, &filled(1));
        }
        let found = read(kernel.bytes.as_slice(), 1000 * CHUNK as u64).unwrap();
        let expected: Vec<_> = kernel.map.iter().map(|(&old, &new)| Exception { old, new }).collect();
        assert_eq!(found, expected, "{count} exceptions");
    }
}

#[test]
fn every_chunk_of_an_image_has_room_in_its_cow_file() {
    for chunks in [1, 2, 255, 256, 257, 512, 513, 5000] {
        let mut kernel = Kernel::new(chunks * CHUNK);
        for old in 0..chunks as u64 {
            kernel.write(old, &filled(7)); // panics beyond the end of the file
        }
        assert_eq!(read(kernel.bytes.as_slice(), (chunks * CHUNK) as u64).unwrap().len(), chunks);
    }
}

#[test]
fn what_is_wrong_with_a_store_is_named() {
    let origin = 600 * CHUNK as u64;
    let broken = |damage: &dyn Fn(&mut Kernel)| {
        let mut kernel = Kernel::new(origin as usize);
        (0..300).for_each(|old| kernel.write(old, &filled(1)));
        damage(&mut kernel);
        read(kernel.bytes.as_slice(), origin).unwrap_err()
    };
    let word = |at: usize, value: u32| {
        move |kernel: &mut Kernel| kernel.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    assert!(matches!(broken(&word(0, 0)), StoreError::Magic(0)));
    assert!(matches!(broken(&word(0, 0x536e_4170)), StoreError::Magic(_)), "the other byte order");
    assert!(matches!(broken(&word(4, 0)), StoreError::Invalid));
    assert!(matches!(broken(&word(4, 2)), StoreError::Invalid));
    assert!(matches!(broken(&word(8, 2)), StoreError::Version(2)));
    assert!(matches!(broken(&word(12, 16)), StoreError::ChunkSize(16)));
    assert!(matches!(broken(&word(12, 0)), StoreError::ChunkSize(0)));
    assert!(matches!(broken(&|kernel| kernel.bytes.truncate(100)), StoreError::Magic(0)));
    assert!(matches!(broken(&|kernel| kernel.bytes.truncate(CHUNK)), StoreError::Truncated(0)));
    // The first area is full, the second is not there.
    assert!(matches!(broken(&|kernel| kernel.bytes.truncate(258 * CHUNK)), StoreError::Truncated(1)));
    let pair = |index: usize| CHUNK + index * 16;
    assert!(matches!(broken(&|kernel| kernel.set(pair(3), 600)), StoreError::Old { index: 3, old: 600 }));
    assert!(matches!(broken(&|kernel| kernel.set(pair(3), u64::MAX)), StoreError::Old { index: 3, .. }));
    let outside = file_bytes(origin) / CHUNK as u64;
    for new in [1, 258, 515, outside, u64::MAX] {
        let error = broken(&|kernel| kernel.set(pair(3) + 8, new));
        assert!(matches!(error, StoreError::New { index: 3, new: found } if found == new), "{error}");
    }
    assert!(matches!(broken(&|kernel| kernel.set(pair(3), 7)), StoreError::OldTwice(7)));
    assert!(matches!(broken(&|kernel| kernel.set(pair(3) + 8, 9)), StoreError::NewTwice(9)));
}

/// What the disk held, what was written to it, and where the image has holes.
#[derive(Debug, Clone)]
struct Life {
    image: Vec<u8>,
    writes: Vec<(u64, u8)>,
}

fn life() -> impl Strategy<Value = Life> {
    // Sizes that end within a chunk too: 512 is the least a device has.
    (1_usize..700, 0_usize..8)
        .prop_flat_map(|(chunks, sectors)| {
            let bytes = chunks * CHUNK + sectors * 512;
            let all = bytes.div_ceil(CHUNK) as u64;
            let image = prop::collection::vec(prop_oneof![3 => Just(0_u8), 2 => 1_u8..], all as usize);
            let write = (0..all, prop_oneof![Just(0_u8), 1_u8..]);
            (Just(bytes), image, prop::collection::vec(write, 0..800))
        })
        .prop_map(|(bytes, fill, writes)| {
            let mut image: Vec<u8> = fill.iter().flat_map(|&byte| filled(byte)).collect();
            image.truncate(bytes);
            Life { image, writes }
        })
}

/// The chunk's number mixed in, so that a chunk in another's place is noticed. 0 stays zeros.
fn content(old: u64, byte: u8) -> [u8; CHUNK] {
    let mut content = filled(byte);
    if byte != 0 {
        content[..8].copy_from_slice(&old.to_le_bytes());
        content[100] = 0;
    }
    content
}

fn sparse(path: &Path, content: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(content.len() as u64).unwrap();
    for (at, chunk) in
        content.chunks(CHUNK).enumerate().filter(|(_, chunk)| chunk.iter().any(|&byte| byte != 0))
    {
        file.write_all_at(chunk, (at * CHUNK) as u64).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_flattened_disk_holds_what_was_last_written(life in life()) {
        let dir = tempfile::tempdir().unwrap();
        let [image, store, out] = ["image", "cow", "out"].map(|name| dir.path().join(name));
        let mut kernel = Kernel::new(life.image.len());
        let mut model = life.image.clone();
        model.resize(model.len().next_multiple_of(CHUNK), 0);
        for &(old, byte) in &life.writes {
            let content = content(old, byte);
            kernel.write(old, &content);
            model[old as usize * CHUNK..][..CHUNK].copy_from_slice(&content);
        }
        model.truncate(life.image.len());
        sparse(&image, &life.image);
        std::fs::write(&store, &kernel.bytes).unwrap();

        let to = OpenOptions::new().read(true).write(true).create_new(true).open(&out).unwrap();
        let image = Image::open(&image).unwrap();
        flatten::flatten(&image, &File::open(&store).unwrap(), &store, &out, &to).unwrap();
        let flat = std::fs::read(&out).unwrap();
        prop_assert_eq!(flat.len(), model.len());
        let differs = flat.iter().zip(&model).position(|(flat, model)| flat != model);
        prop_assert_eq!(differs, None);
        // Zeros take no space, whether the image had them or they were written.
        to.sync_all().unwrap();
        let data = model.chunks(CHUNK).filter(|chunk| chunk.iter().any(|&byte| byte != 0)).count() as u64;
        let taken = to.metadata().unwrap().blocks() * 512 / CHUNK as u64;
        prop_assert!(taken <= data + 8, "{taken} blocks for {data} chunks of data");
    }

    #[test]
    fn runs_cover_every_exception_once_and_never_pass_the_end(
        old in prop::collection::btree_set(0_u64..400, 0..300),
        gap in prop::collection::vec(0_u64..3, 300),
        limit in 1_u64..20,
        sectors in 1_u64..9,
    ) {
        let mut new = 1;
        let sorted: Vec<_> = old.iter().zip(&gap).map(|(&old, gap)| { new += 1 + gap; Exception { old, new } }).collect();
        let chunk = CHUNK as u64;
        let end = 399 * chunk + sectors * 512;
        let mut seen = BTreeSet::new();
        for run in runs(&sorted, end, limit * chunk) {
            prop_assert!(run.image.start < run.image.end && run.image.end <= end);
            prop_assert!(run.image.end - run.image.start <= limit * chunk);
            for at in (run.image.start..run.image.end).step_by(CHUNK) {
                let new = (run.file + (at - run.image.start)) / chunk;
                let exception = Exception { old: at / chunk, new };
                prop_assert!(seen.insert(exception), "{exception:?} twice");
            }
        }
        prop_assert_eq!(seen, sorted.into_iter().collect());
    }

    #[test]
    fn no_bytes_make_the_reader_fall_over(
        writes in prop::collection::vec(0_u64..40, 0..60),
        damage in prop::collection::vec((0_usize..CHUNK * 3, any::<u8>()), 0..40),
        length in 0_usize..60 * CHUNK,
        origin in 0_u64..1 << 50,
    ) {
        let mut kernel = Kernel::new(40 * CHUNK);
        writes.iter().for_each(|&old| kernel.write(old, &filled(1)));
        kernel.bytes.truncate(length);
        for (at, byte) in damage {
            if let Some(place) = kernel.bytes.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(found) = read(kernel.bytes.as_slice(), origin) {
            let chunks = kernel.bytes.len() as u64 / CHUNK as u64;
            prop_assert!(found.iter().all(|found| found.new < chunks && found.old < origin.div_ceil(CHUNK as u64)));
            prop_assert!(found.windows(2).all(|pair| pair[0].old < pair[1].old));
        }
    }
}
