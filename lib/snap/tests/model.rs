//! Chains of packs, merges and unpacks against a model that is nothing but the memory's bytes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use snap::pack::{Blocks, Kind, Mode, Pack, Packed, pack};
use snap::{Checked, Content, Image, Ranges, Raw};
use wire::Undo;

const PAGE: usize = 4096;

/// What happens to memory between two snapshots, and how the second is taken.
#[derive(Debug, Clone)]
enum Step {
    /// A dense memory file; with the parent, only what differs is stored.
    Full {
        writes: Vec<(usize, u8)>,
        with_parent: bool,
        mode: Mode,
    },
    /// A sparse file of the written pages. Discarded pages read as zeros and are written nowhere.
    Diff {
        discards: Vec<(usize, usize)>,
        writes: Vec<(usize, u8)>,
        mode: Mode,
    },
    /// All of memory, as it comes from a pipe.
    Pipe {
        writes: Vec<(usize, u8)>,
        with_parent: bool,
    },
    Merge {
        elsewhere: bool,
        down_to: u64,
    },
    /// Onto an unrelated full image of other memory.
    Rebase {
        elsewhere: bool,
        writes: Vec<(usize, u8)>,
    },
    /// Something is left over, and goes.
    Prune,
    /// A part of memory is what it is.
    Part {
        offset: u64,
        length: u64,
    },
}

fn step(pages: usize) -> impl Strategy<Value = Step> {
    // Every third write is of zeros.
    let value = prop_oneof![Just(0u8), any::<u8>(), 1..=255u8];
    let writes = proptest::collection::vec((0..pages, value), 0..12);
    let discards = proptest::collection::vec((0..pages, 1..6usize), 0..4);
    let mode = || prop_oneof![Just(Mode::Auto), Just(Mode::Inplace), Just(Mode::Copy)];
    prop_oneof![
        1 => (writes.clone(), any::<bool>(), mode())
            .prop_map(|(writes, with_parent, mode)| Step::Full { writes, with_parent, mode }),
        4 => (discards, writes.clone(), mode()).prop_map(|(discards, writes, mode)| Step::Diff { discards, writes, mode }),
        1 => (writes.clone(), any::<bool>()).prop_map(|(writes, with_parent)| Step::Pipe { writes, with_parent }),
        1 => (any::<bool>(), 0..4_u64).prop_map(|(elsewhere, down_to)| Step::Merge { elsewhere, down_to }),
        1 => (any::<bool>(), writes.clone()).prop_map(|(elsewhere, writes)| Step::Rebase { elsewhere, writes }),
        1 => Just(Step::Prune),
        1 => (0..(pages * PAGE) as u64, 1..(pages * PAGE) as u64)
            .prop_map(|(offset, length)| Step::Part { offset, length }),
    ]
}

/// The memory, and the last snapshot of it.
struct Chain {
    home: tempfile::TempDir,
    memory: Vec<u8>,
    block_size: u64,
    dir: Option<PathBuf>,
    taken: usize,
}

impl Chain {
    fn new(pages: usize, block_size: u64) -> Self {
        // tmpfs, where nothing else is asked for: no disk is worn out by syncing.
        let shm = Path::new("/dev/shm");
        let asked = std::env::var_os("TMPDIR").is_some();
        let home = if shm.is_dir() && !asked { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        Self { home: home.unwrap(), memory: vec![0; pages * PAGE], block_size, dir: None, taken: 0 }
    }

    fn page(&mut self, page: usize) -> &mut [u8] {
        &mut self.memory[page * PAGE..][..PAGE]
    }

    fn write(&mut self, writes: &[(usize, u8)]) {
        for (page, value) in writes {
            self.page(*page).fill(*value);
            // A page of one value except at its end, so that a test of its beginning alone does not do.
            if *value != 0 && value % 2 == 0 {
                self.page(*page)[..PAGE - 1].fill(0);
            }
        }
    }

    fn next_dir(&mut self) -> PathBuf {
        self.taken += 1;
        self.home.path().join(format!("gen-{}", self.taken))
    }

    fn pack_pipe(&mut self, parent: Option<PathBuf>) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let dir = self.next_dir();
        let request = Pack {
            parent,
            size: Some(self.memory.len() as u64),
            block_size: Some(self.block_size),
            ..Pack::new(Raw::Pipe(reader.into()), dir.clone(), Kind::Full)
        };
        let memory = &self.memory;
        std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(memory).unwrap());
            let mut undo = Undo::default();
            pack(&request, &mut undo).unwrap();
            undo.commit();
        });
        self.move_on(dir);
    }

    /// The new snapshot is complete in itself.
    fn move_on(&mut self, dir: PathBuf) {
        if let Some(old) = self.dir.replace(dir) {
            fs::remove_dir_all(old).unwrap();
        }
    }

    fn pack(
        &mut self,
        raw: PathBuf,
        kind: Kind,
        parent: Option<PathBuf>,
        removed: Ranges,
        mode: Mode,
    ) -> Packed {
        let dir = self.next_dir();
        let request = Pack {
            parent: parent.clone(),
            removed,
            block_size: Some(self.block_size),
            mode,
            checksums: self.taken.is_multiple_of(2),
            ..Pack::new(raw.clone(), dir.clone(), kind)
        };
        let generation = parent
            .as_deref()
            .map_or(0, |parent| snap::directory::read_header(parent).unwrap().generation + 1);
        let mut undo = Undo::default();
        let packed = pack(&request, &mut undo).unwrap();
        undo.commit();
        assert_eq!(packed.raw_used, mode != Mode::Copy);
        assert_eq!(raw.exists(), !packed.raw_used, "in place uses the raw file up");
        assert_eq!(packed.header.generation, generation);
        let _ = fs::remove_file(raw);
        self.move_on(dir);
        packed
    }

    fn take(&mut self, step: &Step) {
        let raw = self.home.path().join("memfile.raw");
        match step {
            Step::Full { writes, with_parent, mode } => {
                self.write(writes);
                fs::write(&raw, &self.memory).unwrap();
                let parent = self.dir.clone().filter(|_| *with_parent);
                self.pack(raw, Kind::Full, parent, Ranges::new(), *mode);
            }
            Step::Diff { discards, writes, mode } => {
                let Some(parent) = self.dir.clone() else { return };
                let pages = self.memory.len() / PAGE;
                let file = File::create(&raw).unwrap();
                file.set_len(self.memory.len() as u64).unwrap();
                let mut removed = Ranges::new();
                let mut state = vec![Fate::Unchanged; pages];
                let before = self.memory.clone();
                for (page, count) in discards {
                    let end = pages.min(page + count);
                    removed.insert((page * PAGE) as u64..(end * PAGE) as u64);
                    (*page..end).for_each(|page| {
                        self.page(page).fill(0);
                        state[page] = Fate::Zero;
                    });
                }
                self.write(writes);
                for (page, _) in writes {
                    let bytes = &self.memory[page * PAGE..][..PAGE];
                    file.write_all_at(bytes, (page * PAGE) as u64).unwrap();
                    // A VMM writes pages out that were only read: what is as the parent has it is not stored again.
                    let unchanged = *bytes == before[page * PAGE..][..PAGE];
                    state[*page] = match bytes.iter().all(|byte| *byte == 0) {
                        true => Fate::Zero,
                        false if unchanged => Fate::Unchanged,
                        false => Fate::Stored,
                    };
                }
                let packed = self.pack(raw, Kind::Diff, Some(parent), removed, *mode);
                if self.block_size == PAGE as u64 {
                    let count = |fate| state.iter().filter(|other| **other == fate).count() as u64;
                    let expected = Blocks {
                        stored: count(Fate::Stored),
                        zero: count(Fate::Zero),
                        inherited: count(Fate::Unchanged),
                    };
                    assert_eq!(packed.blocks, expected);
                }
            }
            Step::Pipe { writes, with_parent } => {
                self.write(writes);
                let parent = self.dir.clone().filter(|_| *with_parent);
                self.pack_pipe(parent);
            }
            Step::Merge { elsewhere, down_to } => {
                let Some(dir) = self.dir.clone() else { return };
                let out = elsewhere.then(|| self.next_dir());
                let mut undo = Undo::default();
                let merged = snap::merge::merge(&dir, out.as_deref(), *down_to, None, &mut undo).unwrap();
                undo.commit();
                assert!(merged.0.generation <= *down_to && merged.0.builds().len() as u64 <= down_to + 1);
                if let Some(out) = out {
                    self.move_on(out);
                }
                if *down_to == 0 {
                    let names = fs::read_dir(self.dir.as_ref().unwrap()).unwrap().count();
                    assert_eq!(names, 3, "a header, one diff file and its checksums are left");
                }
            }
            Step::Rebase { elsewhere, writes } => {
                let Some(dir) = self.dir.clone() else { return };
                // The other memory is this one, written to.
                let (memory, parent) = (self.memory.clone(), self.next_dir());
                self.write(writes);
                let other = std::mem::replace(&mut self.memory, memory);
                fs::write(&raw, &other).unwrap();
                let request =
                    Pack { block_size: Some(self.block_size), ..Pack::new(raw, parent.clone(), Kind::Full) };
                let mut undo = Undo::default();
                pack(&request, &mut undo).unwrap();
                undo.commit();
                let out = elsewhere.then(|| self.next_dir());
                let (header, blocks) =
                    snap::rebase::rebase(&dir, &parent, out.as_deref(), None, &mut undo).unwrap();
                undo.commit();
                fs::remove_dir_all(parent).unwrap();
                if let Some(out) = out {
                    self.move_on(out);
                }
                assert_eq!(header.generation, 1);
                let own = self.memory.chunks(self.block_size as usize);
                let pairs: Vec<_> = own.zip(other.chunks(self.block_size as usize)).collect();
                let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
                let same = pairs.iter().filter(|(own, other)| own == other && !is_zero(own)).count() as u64;
                let zero = pairs.iter().filter(|(own, _)| is_zero(own)).count() as u64;
                let stored = pairs.len() as u64 - same - zero;
                assert_eq!(blocks, Blocks { stored, zero, inherited: same });
            }
            Step::Prune => {
                let Some(dir) = self.dir.clone() else { return };
                let before = fs::read_dir(&dir).unwrap().count();
                let strays = [
                    "memfile.00000000-0000-4000-8000-00000000dead",
                    "memfile.00000000-0000-4000-8000-00000000dead.sum",
                    ".memfile.header.4242.partial",
                ];
                strays.iter().for_each(|name| fs::write(dir.join(name), [7; 9000]).unwrap());
                fs::write(dir.join("snapfile"), "state").unwrap();
                let mut undo = Undo::default();
                let mut expected = strays.to_vec();
                expected.sort_unstable();
                assert_eq!(snap::prune::prune(&dir, &mut undo).unwrap().names, expected);
                undo.commit();
                fs::remove_file(dir.join("snapfile")).unwrap();
                assert_eq!(fs::read_dir(&dir).unwrap().count(), before);
            }
            Step::Part { offset, length } => {
                let Some(dir) = self.dir.clone() else { return };
                let mut undo = Undo::default();
                let size = self.memory.len() as u64;
                let length = (*length).min(size - offset);
                snap::unpack::unpack(&dir, &raw, *offset, Some(length), &mut undo).unwrap();
                undo.commit();
                let range = *offset as usize..(offset + length) as usize;
                assert!(fs::read(&raw).unwrap() == self.memory[range], "{length} bytes from {offset} on");
                fs::remove_file(&raw).unwrap();
            }
        }
        self.check();
    }

    fn check(&self) {
        let dir = self.dir.as_ref().unwrap();
        let raw = self.home.path().join("unpacked");
        let mut undo = Undo::default();
        snap::unpack::unpack(dir, &raw, 0, None, &mut undo).unwrap();
        undo.commit();
        assert!(fs::read(&raw).unwrap() == self.memory, "unpack gives the memory");

        let found = snap::verify::examine(dir).unwrap();
        assert!(found.faults.is_empty(), "{:?}", found.faults);

        let image = Image::open_checked(dir).unwrap();
        let mut at = 0;
        while at < image.size() {
            let checked = image.check_run(at, &mut Vec::new());
            assert!(
                !matches!(checked, Checked::Wrong(_)) && checked.range().contains(&at),
                "{checked:?} at {at}"
            );
            at = checked.range().end;
        }
        let mut at = 0;
        for extent in image.extents() {
            assert_eq!(extent.offset, at);
            assert_eq!((extent.offset | extent.length) % self.block_size, 0, "extents are whole blocks");
            let expected = &self.memory[extent.offset as usize..extent.end() as usize];
            match extent.content {
                Content::Zero => assert!(expected.iter().all(|byte| *byte == 0), "zeros at {at}"),
                Content::Data(bytes) => assert!(bytes == expected, "data at {at}"),
            }
            for inside in [at, at + extent.length / 2, extent.end() - 1] {
                assert_eq!(image.extent_at(inside), extent);
            }
            at = extent.end();
            assert_eq!(
                image.next_extent(extent.offset).map(|next| next.offset),
                Some(at).filter(|at| *at < image.size())
            );
        }
        assert_eq!(at, self.memory.len() as u64);
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(
            !names.iter().any(|name| name.to_string_lossy().starts_with('.')),
            "nothing unfinished in {names:?}"
        );
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Unchanged,
    Zero,
    Stored,
}

fn play(pages: usize, block_size: u64, steps: &[Step]) {
    let mut chain = Chain::new(pages, block_size);
    chain.take(&Step::Full {
        writes: vec![(1, 7), (2, 8), (pages - 1, 9)],
        with_parent: false,
        mode: Mode::Auto,
    });
    steps.iter().for_each(|step| chain.take(step));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_exact_through_any_chain(steps in proptest::collection::vec(step(48), 1..10)) {
        play(48, 4096, &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn memory_is_exact_through_any_chain_of_huge_blocks(steps in proptest::collection::vec(step(3 * 512), 1..6)) {
        play(3 * 512, 2 << 20, &steps);
    }
}
