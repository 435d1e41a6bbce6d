//! The work of `pack`: check, scan, store, publish.

use std::fs::File;
use std::path::Path;

use uuid::Uuid;
use wire::Undo;

use crate::header::{self, BLOCK_SIZES, Header, Record};
use crate::pack::{Blocks, Kind, Mode, Pack, Packed};
use crate::scan::{Fate, Run, Scan, Scanned};
use crate::spans::Spans;
use crate::{Error, Image, directory, place, plain, store, sums};

/// Packs. On an error nothing is left behind, and the raw file is as it was.
///
/// # Errors
/// `invalid` for what can never work, `conflict` when there is a snapshot in `dir` already, `corrupt` when the parent is;
/// what the kernel said.
pub fn pack(request: &Pack, undo: &mut Undo) -> Result<Packed, wire::Error> {
    // Everything that can be refused is refused here.
    let raw = Raw::open(request)?;
    let parent = request.parent.as_deref().map(|dir| Parent::open(dir, request.block_size)).transpose()?;
    let block_size = block_size(request, parent.as_ref())?;
    check(request, &raw, parent.as_ref(), block_size)?;
    let build = build(request, parent.as_ref())?;

    let spans = match request.kind {
        Kind::Full => Spans::full(&raw.file, &request.raw, raw.size)?,
        Kind::Diff => Spans::diff(&raw.file, &request.raw, raw.size, &request.removed)?,
    };

    place::create_dir("dir", &request.dir, undo)?;
    let target = directory::diff_path(&request.dir, build);
    // How much of a full file its parent has is known only when it has been read.
    let late = request.mode == Mode::Auto && request.kind == Kind::Full && parent.is_some();
    let claim = |undo: &mut Undo| store::claim(&request.raw, &target, request.mode, undo);
    let early = if late { None } else { claim(undo)? };
    let scan = Scan {
        raw: &raw.file,
        path: &request.raw,
        spans: &spans,
        block_size,
        parent: parent.as_ref().map(|parent| &parent.image),
        sums: request.checksums,
        // A full file without its zeros still reads the same; a diff does not.
        punch: early.as_ref().filter(|_| request.kind == Kind::Full && parent.is_none()),
    };
    let Scanned { runs, sums } = scan.run()?;
    // Making holes of what is not stored takes longer than copying a little that is.
    let copied = late && store::is_little(&runs);
    let claimed = if late && !copied { claim(undo)? } else { None };
    let claimed = early.as_ref().or(claimed.as_ref());
    let in_place = claimed.is_some();
    let records = records(&runs, build, in_place, parent.as_ref());
    let job = store::Job { scan: &scan, runs: &runs, records: &records, build, target: &target };
    match claimed {
        Some(file) => job.in_place(&request.raw, file, undo)?,
        None => job.copy(undo)?,
    }

    let header = Header {
        block_size,
        size: raw.size,
        generation: parent.as_ref().map_or(0, |parent| parent.header.generation + 1),
        build,
        base_build: parent.as_ref().map_or(build, |parent| parent.header.base_build),
        records,
    };
    if let Some(parent) = &parent {
        store::carry_diffs(parent.dir, &parent.header, &header, &request.dir, undo)?;
    }
    if request.checksums {
        let sums = sums::in_storage(sums, &header.records, build);
        sums::write(&request.dir, build, &sums, undo)?;
    }
    wire::check_interrupt()?;
    store::publish(&request.dir, &header, undo)?;
    let raw_used = if in_place {
        store::release(&request.raw, &target, undo)?;
        true
    } else {
        copied && store::take_away(&request.raw, &target, undo)?
    };
    let blocks = count(&runs, block_size);
    Ok(Packed { header, blocks, raw_used })
}

struct Raw {
    file: File,
    size: u64,
}

impl Raw {
    fn open(request: &Pack) -> Result<Self, Error> {
        let path = &request.raw;
        let file = File::open(path).map_err(Error::io("open", path))?;
        let size = directory::regular_length(&file, path)?;
        Ok(Self { file, size })
    }
}

struct Parent<'a> {
    dir: &'a Path,
    header: Header,
    image: Image,
}

impl<'a> Parent<'a> {
    /// A directory without a header is a full image too, if its memory lies there as a plain file.
    fn open(dir: &'a Path, block_size: Option<u64>) -> Result<Self, Error> {
        let header = match directory::read_header(dir) {
            Err(Error::NoSnapshot { .. }) => plain::header(dir, block_size)?,
            header => header?,
        };
        let image = Image::with_header(dir, &header)?;
        Ok(Self { dir, header, image })
    }
}

fn block_size(request: &Pack, parent: Option<&Parent>) -> Result<u64, Error> {
    let of_parent = parent.map(|parent| parent.header.block_size);
    let block_size = request.block_size.or(of_parent).unwrap_or(BLOCK_SIZES[0]);
    if !BLOCK_SIZES.contains(&block_size) {
        return Err(Error::field("block_size", format!("must be 4096 or 2097152, not {block_size}")));
    }
    match of_parent {
        Some(other) if other != block_size => {
            Err(Error::field("block_size", format!("{block_size}, but the parent's is {other}")))
        }
        _ => Ok(block_size),
    }
}

fn check(request: &Pack, raw: &Raw, parent: Option<&Parent>, block_size: u64) -> Result<(), Error> {
    let Raw { size, .. } = *raw;
    let path = request.raw.display();
    if size == 0 || !size.is_multiple_of(block_size) {
        let what = format!("{path} has {size} bytes, not a positive multiple of the block size {block_size}");
        return Err(Error::field("raw", what));
    }
    match parent {
        None if request.kind == Kind::Diff => {
            return Err(Error::field("parent", "missing; a diff is relative to one"));
        }
        Some(parent) if parent.header.size != size => {
            let what = format!("{path} has {size} bytes, the parent {}", parent.header.size);
            return Err(Error::field("raw", what));
        }
        _ => {}
    }
    let in_pages =
        |range: &std::ops::Range<u64>| (range.start | range.end).is_multiple_of(crate::spans::PAGE);
    if request.removed.end() > size || !request.removed.ranges().all(|range| in_pages(&range)) {
        return Err(Error::field("removed", format!("must be whole pages of the {size} bytes of memory")));
    }
    let header = directory::header_path(&request.dir);
    if header.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: header });
    }
    if request.dir.exists() && !request.dir.is_dir() {
        return Err(Error::field("dir", format!("{} is not a directory", request.dir.display())));
    }
    Ok(())
}

fn build(request: &Pack, parent: Option<&Parent>) -> Result<Uuid, Error> {
    let build = request.build.unwrap_or_else(Uuid::new_v4);
    let taken = |parent: &Parent| {
        parent.header.build == build || parent.header.records.iter().any(|record| record.build == build)
    };
    if parent.is_some_and(taken) {
        return Err(Error::field("build", format!("{build} is one of the parent's")));
    }
    Ok(build)
}

/// The header's records: where every run's bytes are from now on.
fn records(runs: &[Run], build: Uuid, in_place: bool, parent: Option<&Parent>) -> Vec<Record> {
    let mut records = Vec::new();
    let mut stored = 0;
    for run in runs {
        let (offset, length) = (run.range.start, run.length());
        match (run.fate, parent) {
            (Fate::Stored, _) => {
                let storage_offset = if in_place { offset } else { stored };
                header::push(&mut records, Record { offset, length, build, storage_offset });
                stored += length;
            }
            (Fate::Inherited, Some(parent)) => {
                parent
                    .header
                    .range(offset, run.range.end)
                    .for_each(|record| header::push(&mut records, record));
            }
            (Fate::Zero | Fate::Inherited, _) => {
                let zero = Record { offset, length, build: Uuid::nil(), storage_offset: 0 };
                header::push(&mut records, zero);
            }
        }
    }
    records
}

fn count(runs: &[Run], block_size: u64) -> Blocks {
    let of = |fate| runs.iter().filter(|run| run.fate == fate).map(Run::length).sum::<u64>() / block_size;
    Blocks { stored: of(Fate::Stored), zero: of(Fate::Zero), inherited: of(Fate::Inherited) }
}
