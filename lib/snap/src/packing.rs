//! The work of `pack`: check, scan, store, publish.

use std::path::Path;

use uuid::Uuid;
use wire::Undo;

use crate::chain::Chain;
use crate::feed::{Append, Holes};
use crate::header::{self, BLOCK_SIZES, Header, Record};
use crate::input::Input;
use crate::pack::{Blocks, Kind, Mode, Pack, Packed};
use crate::scan::{Expect, Fate, Run, Scan, Scanned};
use crate::spans::Spans;
use crate::{Error, directory, place, store, sums, workingset};

/// Packs. On an error nothing is left behind, and the raw file is as it was.
///
/// # Errors
/// `invalid` for what can never work, `conflict` when there is a snapshot in `dir` already, `corrupt` when the parent is;
/// what the kernel said.
pub fn pack(request: &Pack, undo: &mut Undo) -> Result<Packed, wire::Error> {
    // Everything that can be refused is refused here.
    let open = |dir: &std::path::PathBuf| Chain::open_any(dir, request.block_size);
    let parent = request.parent.as_ref().map(open).transpose()?;
    let wanted = parent.as_ref().map(|parent| parent.header.size).or(request.size);
    let input = Input::open(&request.raw, wanted)?;
    let block_size = block_size(request, parent.as_ref())?;
    check(request, &input, parent.as_ref(), block_size)?;
    let build = build(request, parent.as_ref())?;
    let spans = spans(request, &input)?;

    place::create_dir("dir", &request.dir, undo)?;
    let target = directory::diff_path(&request.dir, build);
    let packing = Packing { request, input, spans, parent, block_size, target: &target };
    let (Scanned { runs, sums }, how) = packing.store(undo)?;

    let Packing { parent, .. } = &packing;
    let header = Header {
        block_size,
        size: runs.last().map_or(0, |run| run.range.end),
        generation: parent.as_ref().map_or(0, |parent| parent.header.generation + 1),
        build,
        base_build: parent.as_ref().map_or(build, |parent| parent.header.base_build),
        records: records(&runs, build, how == How::InPlace, parent.as_ref().map(|parent| &parent.header)),
    };
    if let Some(parent) = parent {
        store::carry_diffs(parent, &header, &request.dir, |_| true, undo)?;
    }
    if let Some((dir, parent)) = request.parent.as_ref().zip(parent.as_ref()) {
        // The same guest a while later: it wakes in the same places.
        workingset::carry((dir, parent.header.build), (&request.dir, build), undo);
    }
    if request.checksums {
        let sums = sums::Sums::in_storage(sums, &header.records, build);
        sums::write(&request.dir, build, &sums, undo)?;
    }
    wire::check_interrupt()?;
    store::publish(&request.dir, &header, undo)?;
    let raw_used = match (&packing.input, how) {
        (Input::File { path, .. }, How::InPlace) => {
            store::release(path, &target, undo)?;
            true
        }
        (Input::File { path, .. }, How::Little) => store::take_away(path, &target, undo)?,
        _ => false,
    };
    let blocks = count(&runs, block_size);
    Ok(Packed { header, blocks, raw_used })
}

/// What to pack, once nothing speaks against it.
struct Packing<'a> {
    request: &'a Pack,
    input: Input<'a>,
    spans: Spans,
    parent: Option<Chain>,
    block_size: u64,
    target: &'a Path,
}

/// How the diff file came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The raw file is it.
    InPlace,
    /// It was written.
    Copied,
    /// It was written because making holes of what is not stored takes longer than copying a little that is: the raw
    /// file could have been it.
    Little,
}

impl Packing<'_> {
    /// Scans the memory and makes the diff file.
    fn store(&self, undo: &mut Undo) -> Result<(Scanned, How), wire::Error> {
        let Pack { kind, mode, .. } = *self.request;
        let Input::File { file, path, .. } = &self.input else { return self.copy(undo) };
        // How much of a full file its parent has is known only when it has been read.
        if mode == Mode::Auto && kind == Kind::Full && self.parent.is_some() {
            let scanned = self.scan().run()?;
            if !store::is_little(&scanned.runs)
                && let Some(file) = store::claim(path, self.target, mode, undo)?
            {
                self.in_place(path, &file, &scanned, undo)?;
                return Ok((scanned, How::InPlace));
            }
            let partial = place::Partial::create(self.target)?;
            store::copy_stored(file, &scanned.runs, partial, undo)?;
            return Ok((scanned, How::Little));
        }
        let Some(claimed) = store::claim(path, self.target, mode, undo)? else { return self.copy(undo) };
        // A full file without its zeros still reads the same; a diff does not.
        let punch = (kind == Kind::Full && self.parent.is_none()).then(|| Holes::new(&claimed, path));
        let scanned = Scan { punch, ..self.scan() }.run()?;
        self.in_place(path, &claimed, &scanned, undo)?;
        Ok((scanned, How::InPlace))
    }

    fn scan(&self) -> Scan<'_> {
        Scan {
            what: "packing",
            input: &self.input,
            spans: &self.spans,
            block_size: self.block_size,
            parent: self.parent.as_ref(),
            expect: if self.request.kind == Kind::Diff { Expect::Other } else { Expect::Same },
            sums: self.request.checksums,
            punch: None,
            append: None,
        }
    }

    /// Writes what is stored as it is read; where files can share their data, it is shared afterwards and not written.
    fn copy(&self, undo: &mut Undo) -> Result<(Scanned, How), wire::Error> {
        let partial = place::Partial::create(self.target)?;
        // A block of several pages may be put together from the raw file's and the parent's.
        if let Input::File { file, .. } = &self.input
            && self.block_size == crate::spans::PAGE
            && place::shares(file, &partial.file).map_err(Error::io("write", self.target))?
        {
            let scanned = self.scan().run()?;
            store::copy_stored(file, &scanned.runs, partial, undo)?;
            return Ok((scanned, How::Copied));
        }
        let append = Some(Append::new(&partial.file, self.target));
        let scanned = Scan { append, ..self.scan() }.run()?;
        partial.publish(undo)?;
        Ok((scanned, How::Copied))
    }

    /// The raw file is the diff file already. What it need not hold becomes holes, if that has not been done while it was
    /// scanned, when nothing can be undone any more.
    fn in_place(
        &self,
        raw: &Path,
        file: &std::fs::File,
        scanned: &Scanned,
        undo: &mut Undo,
    ) -> Result<(), wire::Error> {
        let stored = scanned.runs.iter().filter(|run| run.fate == Fate::Stored);
        for run in stored.take_while(|_| self.block_size > crate::spans::PAGE) {
            store::fill_from_parent(&self.spans, self.parent.as_ref(), &run.range, file, raw)?;
        }
        file.sync_all().map_err(Error::io("sync", raw))?;
        if self.request.kind == Kind::Diff || self.parent.is_some() {
            store::punch_at_commit(file, self.target, &scanned.runs, undo)?;
        }
        Ok(())
    }
}

fn spans(request: &Pack, input: &Input) -> Result<Spans, Error> {
    match (input, request.kind) {
        (Input::File { file, path, size }, Kind::Full) => Spans::full(file, path, *size),
        (Input::File { file, path, size }, Kind::Diff) => Spans::diff(file, path, *size, &request.removed),
        _ => Ok(Spans::data(input.size().unwrap_or(0))),
    }
}

fn block_size(request: &Pack, parent: Option<&Chain>) -> Result<u64, Error> {
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

fn check(request: &Pack, input: &Input, parent: Option<&Chain>, block_size: u64) -> Result<(), Error> {
    let raw = match input {
        Input::File { path, .. } => path.display().to_string(),
        Input::Process { process, .. } => format!("process {}", process.pid),
        Input::Pipe { .. } | Input::Chain(_) => "it".to_owned(),
    };
    if !matches!(input, Input::File { .. }) {
        let refuse = |field, what: &str| {
            Err(Error::field(field, format!("{what}; memory that is no file is packed full and copied")))
        };
        match (request.kind, request.mode) {
            (Kind::Diff, _) => return refuse("kind", "diff, but only a file's holes tell what is unchanged"),
            (_, Mode::Inplace) => {
                return refuse("mode", "inplace, but there is no file to become the diff file");
            }
            _ => {}
        }
    }
    if let Some(size) = input.size() {
        if size == 0 || !size.is_multiple_of(block_size) {
            let what =
                format!("{raw} has {size} bytes, not a positive multiple of the block size {block_size}");
            return Err(Error::field("raw", what));
        }
        if let Some(parent) = parent.filter(|parent| parent.header.size != size) {
            let what = format!("{raw} has {size} bytes, the parent {}", parent.header.size);
            return Err(Error::field("raw", what));
        }
        let in_pages =
            |range: &std::ops::Range<u64>| (range.start | range.end).is_multiple_of(crate::spans::PAGE);
        if request.removed.end() > size || !request.removed.ranges().all(|range| in_pages(&range)) {
            return Err(Error::field(
                "removed",
                format!("must be whole pages of the {size} bytes of memory"),
            ));
        }
    }
    if parent.is_none() && request.kind == Kind::Diff {
        return Err(Error::field("parent", "missing; a diff is relative to one"));
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

fn build(request: &Pack, parent: Option<&Chain>) -> Result<Uuid, Error> {
    let build = request.build.unwrap_or_else(Uuid::new_v4);
    let taken = |parent: &Chain| {
        parent.header.build == build || parent.header.records.iter().any(|record| record.build == build)
    };
    if parent.is_some_and(taken) {
        return Err(Error::field("build", format!("{build} is one of the parent's")));
    }
    Ok(build)
}

/// The header's records: where every run's bytes are from now on.
pub fn records(runs: &[Run], build: Uuid, in_place: bool, parent: Option<&Header>) -> Vec<Record> {
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
                parent.range(offset, run.range.end).for_each(|record| header::push(&mut records, record));
            }
            (Fate::Zero | Fate::Inherited, _) => {
                let zero = Record { offset, length, build: Uuid::nil(), storage_offset: 0 };
                header::push(&mut records, zero);
            }
        }
    }
    records
}

/// How many blocks became what.
pub fn count(runs: &[Run], block_size: u64) -> Blocks {
    let of = |fate| runs.iter().filter(|run| run.fate == fate).map(Run::length).sum::<u64>() / block_size;
    Blocks { stored: of(Fate::Stored), zero: of(Fate::Zero), inherited: of(Fate::Inherited) }
}
