//! Snapshots as the original writes them, made here by a writer that shares no code with the library: they load, and they
//! are what they were.

use std::fs;
use std::path::{Path, PathBuf};

use snap::{Content, Image};
use wire::Undo;

/// The original's header as its source has it: a metadata block, then mappings, all little-endian, without padding.
struct Writer(Vec<u8>);

impl Writer {
    fn new(block_size: u64, size: u64, generation: u64, build: u8, base: u8) -> Self {
        let mut bytes = Vec::new();
        for number in [1, block_size, size, generation] {
            bytes.extend_from_slice(&u64::to_le_bytes(number));
        }
        bytes.extend_from_slice(&[build; 16]);
        bytes.extend_from_slice(&[base; 16]);
        assert_eq!(bytes.len(), 64);
        Self(bytes)
    }

    /// A mapping, in blocks; build 0 is the nil UUID, zeros.
    fn map(mut self, block_size: u64, offset: u64, length: u64, build: u8, storage: u64) -> Self {
        for number in [offset * block_size, length * block_size] {
            self.0.extend_from_slice(&u64::to_le_bytes(number));
        }
        self.0.extend_from_slice(&[build; 16]);
        self.0.extend_from_slice(&u64::to_le_bytes(storage * block_size));
        self
    }
}

fn uuid(build: u8) -> String {
    let byte = format!("{build:02x}");
    let text = byte.repeat(16);
    [&text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]].join("-")
}

/// Blocks, each filled with its value.
fn blocks(block_size: u64, values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| vec![*value; block_size as usize]).collect()
}

fn check(dir: &Path, memory: &[u8]) {
    let found = snap::verify::examine(dir).unwrap();
    assert!(found.faults.is_empty(), "{:?}", found.faults);
    let image = Image::open(dir).unwrap();
    assert_eq!(image.size(), memory.len() as u64);
    for extent in image.extents() {
        let expected = &memory[extent.offset as usize..extent.end() as usize];
        match extent.content {
            Content::Zero => assert!(expected.iter().all(|byte| *byte == 0), "at {}", extent.offset),
            Content::Data(bytes) => assert!(bytes == expected, "at {}", extent.offset),
        }
    }
    let mut undo = Undo::default();
    let raw = dir.with_extension("raw");
    snap::unpack::unpack(dir, &raw, 0, None, &mut undo).unwrap();
    undo.commit();
    assert!(fs::read(raw).unwrap() == memory);
}

fn make(home: &Path, name: &str, header: Writer, diffs: &[(&str, Vec<u8>)]) -> PathBuf {
    let dir = home.join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("memfile.header"), header.0).unwrap();
    diffs.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
    dir
}

#[test]
fn a_chain_of_three_of_the_originals_generations_loads_and_merges() {
    for block_size in [4096, 2 << 20] {
        let home = tempfile::tempdir().unwrap();
        let map = |writer: Writer, rows: &[(u64, u64, u8, u64)]| {
            rows.iter().fold(writer, |writer, (offset, length, build, storage)| {
                writer.map(block_size, *offset, *length, *build, *storage)
            })
        };
        // The original stores compactly, leaves neighbours that could be one apart, and gives zeros a storage offset.
        let rows = [
            (0, 1, 0x11, 0),
            (1, 1, 0x11, 1),
            (2, 2, 0, 7),
            (4, 1, 0x33, 0),
            (5, 1, 0x22, 1),
            (6, 2, 0x11, 2),
        ];
        let header = map(Writer::new(block_size, 8 * block_size, 2, 0x33, 0x11), &rows);
        let diffs = [(0x11_u8, vec![1, 2, 7, 8]), (0x22, vec![90, 96]), (0x33, vec![105])]
            .map(|(build, values)| (format!("memfile.{}", uuid(build)), blocks(block_size, &values)));
        let diffs = diffs.each_ref().map(|(name, bytes)| (name.as_str(), bytes.clone()));
        let dir = make(home.path(), "chain", header, &diffs);
        let memory = blocks(block_size, &[1, 2, 0, 0, 105, 96, 7, 8]);
        check(&dir, &memory);

        let mut undo = Undo::default();
        let (merged, _) = snap::merge::merge(&dir, None, 0, None, &mut undo).unwrap();
        undo.commit();
        assert_eq!((merged.generation, merged.block_size), (0, block_size));
        check(&dir, &memory);
    }
}

#[test]
fn a_first_snapshot_of_the_original_has_its_memory_in_memfile() {
    let home = tempfile::tempdir().unwrap();
    let header = Writer::new(4096, 3 * 4096, 0, 0x44, 0x44)
        .map(4096, 0, 1, 0x44, 0)
        .map(4096, 1, 1, 0, 0)
        .map(4096, 2, 1, 0x44, 1);
    let dir = make(home.path(), "first", header, &[("memfile", blocks(4096, &[5, 6]))]);
    check(&dir, &blocks(4096, &[5, 0, 6]));
}
