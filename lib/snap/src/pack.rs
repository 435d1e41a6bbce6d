//! `wrenn-snap pack`: a raw memory file becomes a snapshot, that is a header and a diff file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;
use wire::{Call, Field, FromField, Reply, Type, Undo, Value, Verb, json};

use crate::header::{self, BLOCK_SIZES, Header, Record};
use crate::scan::{Fate, Run, Scan};
use crate::spans::Spans;
use crate::{Error, Image, Removed, directory, place, store};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("raw", Type::Path, "the raw memory file, as a VMM writes it; in place, it is used up"),
        Field::need(
            "dir",
            Type::Path,
            "the snapshot's directory; made if absent, must not hold a snapshot yet",
        ),
        Field::need(
            "kind",
            Type::OneOf(&["full", "diff"]),
            "full: holes are zeros; diff: holes are unchanged, and zeros that are written are zeros",
        ),
        Field::may(
            "parent",
            Type::Path,
            "the snapshot that a diff, or what is stored of a full, is relative to",
        ),
        Field::may(
            "removed",
            Type::Any,
            "what the page server saw discarded: a path, or [[offset, length], …] in bytes; default uffd.removed",
        ),
        Field::may("block_size", Type::Integer, "4096 or 2097152 bytes; default the parent's, else 4096"),
        Field::may(
            "mode",
            Type::OneOf(&["auto", "inplace", "copy"]),
            "inplace: raw becomes the diff file; auto (the default): that, where raw and dir share a file system",
        ),
        Field::may("build", Type::String, "the new diff file's UUID; default random"),
    ],
    reply: REPLY,
    example: "truncate -s 64M /tmp/mem.raw && wrenn-snap pack raw=/tmp/mem.raw dir=/tmp/snapshot kind=full mode=copy",
    ..Verb::new("pack", "turn a raw memory file into a snapshot", run)
};

/// What is said of a memory image that was made.
pub(crate) const REPLY: &[Field] = &[
    Field::need("header", Type::Path, "the header, memfile.header"),
    Field::need("build", Type::String, "the new diff file's UUID"),
    Field::need("generation", Type::Integer, "diffs between this image and a full one"),
    Field::need("size", Type::Integer, "bytes of memory"),
    Field::need("block_size", Type::Integer, "bytes of a block"),
    Field::need("blocks", Type::Object, "how many blocks are {stored, zero, inherited}"),
    Field::need("diff", Type::Object, "the new diff file: {path, bytes stored in it}"),
    Field::need("elapsed_ms", Type::Number, "how long it took, in milliseconds"),
];

/// What a raw file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// All of memory; a hole is zeros.
    Full,
    /// What changed; a hole is unchanged.
    Diff,
}

/// Where the diff file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In place where a hard link can be made, else a copy.
    Auto,
    /// The raw file becomes the diff file.
    Inplace,
    /// A new file; the raw file stays.
    Copy,
}

/// What to pack.
#[derive(Debug, Clone)]
pub struct Pack {
    /// The raw memory file.
    pub raw: PathBuf,
    /// The snapshot's directory.
    pub dir: PathBuf,
    /// What the raw file is.
    pub kind: Kind,
    /// What it is relative to.
    pub parent: Option<PathBuf>,
    /// What was discarded since the parent.
    pub removed: Removed,
    /// Bytes of a block; `None` for the parent's, else 4096.
    pub block_size: Option<u64>,
    /// Where the diff file comes from.
    pub mode: Mode,
    /// The diff file's name; `None` for a random one.
    pub build: Option<Uuid>,
}

/// What was packed.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The header as published.
    pub header: Header,
    /// How many blocks are stored, zero and inherited.
    pub blocks: Blocks,
    /// Whether the raw file became the diff file.
    pub in_place: bool,
}

/// Counts of blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocks {
    /// In this build's diff file.
    pub stored: u64,
    /// Zeros.
    pub zero: u64,
    /// As the parent has them.
    pub inherited: u64,
}

impl Blocks {
    /// As JSON.
    pub fn to_json(self) -> Value {
        json!({"stored": self.stored, "zero": self.zero, "inherited": self.inherited})
    }
}

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let started = Instant::now();
    let request = Pack::read(call)?;
    let Packed { header, blocks, in_place } = pack(&request, call.undo)?;
    if in_place {
        forget_raw(call);
    }
    answer(call, &request.dir, &header, blocks, started);
    Ok(Reply::Document)
}

/// Puts a memory image that was made into the reply.
pub(crate) fn answer(call: &mut Call, dir: &Path, header: &Header, blocks: Blocks, started: Instant) {
    let diff = directory::diff_path(dir, header.build);
    call.answer("header", text(&directory::header_path(dir)));
    call.answer("build", header.build.to_string());
    call.answer("generation", header.generation);
    call.answer("size", header.size);
    call.answer("block_size", header.block_size);
    call.answer("blocks", blocks.to_json());
    call.answer("diff", json!({"path": text(&diff), "bytes": blocks.stored * header.block_size}));
    call.answer("elapsed_ms", elapsed_ms(started));
}

/// Milliseconds since then, to the microsecond.
pub(crate) fn elapsed_ms(started: Instant) -> f64 {
    started.elapsed().as_micros() as f64 / 1000.0
}

/// A path as JSON has it.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The raw file is no more: the document must not name it to the next program.
fn forget_raw(call: &mut Call) {
    if let Some((path, _)) = call.fields().value("raw") {
        call.document.remove(&path);
    }
}

impl Pack {
    fn read(call: &Call) -> Result<Self, wire::Error> {
        let fields = call.fields();
        let kind = fields.need("kind")?;
        let removed = match kind {
            Kind::Full => Removed::new(),
            Kind::Diff => read_removed(call)?,
        };
        Ok(Self {
            raw: fields.need("raw")?,
            dir: fields.need("dir")?,
            kind,
            parent: fields.find("parent")?,
            removed,
            block_size: fields.find("block_size")?,
            mode: fields.find("mode")?.unwrap_or(Mode::Auto),
            build: fields.find::<BuildId>("build")?.map(|build| build.0),
        })
    }
}

/// The removed ranges, from where the request has them. None at all means that nothing was discarded.
fn read_removed(call: &Call) -> Result<Removed, wire::Error> {
    let given = call.fields().value("removed");
    let from_server = || call.document.get("uffd.removed").map(|value| ("uffd.removed".to_owned(), value));
    let Some((name, value)) = given.or_else(from_server) else { return Ok(Removed::new()) };
    let wrong = |fault| wire::Error::field(&name, fault);
    match PathBuf::from_field(value) {
        Some(path) => {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            Removed::parse(&bytes).map_err(|fault| wrong(format!("{}: {fault}", path.display())))
        }
        None => Removed::from_value(value).map_err(|fault| wrong(fault.to_string())),
    }
}

/// Packs. On an error nothing is left behind, and the raw file is as it was.
///
/// # Errors
/// `invalid` for what can never work, `conflict` when there is a snapshot in `dir` already, `corrupt` when the parent is;
/// what the kernel said.
pub fn pack(request: &Pack, undo: &mut Undo) -> Result<Packed, wire::Error> {
    // Everything that can be refused is refused here.
    let raw = Raw::open(request)?;
    let parent = request.parent.as_deref().map(Parent::open).transpose()?;
    let block_size = block_size(request, parent.as_ref())?;
    check(request, &raw, parent.as_ref(), block_size)?;
    let build = build(request, parent.as_ref())?;

    let spans = match request.kind {
        Kind::Full => Spans::full(&raw.file, &request.raw, raw.size)?,
        Kind::Diff => Spans::diff(&raw.file, &request.raw, raw.size, &request.removed)?,
    };
    let scan = Scan {
        raw: &raw.file,
        path: &request.raw,
        spans: &spans,
        block_size,
        parent: parent.as_ref().map(|parent| &parent.image),
        probe: request.kind == Kind::Diff,
    };
    let runs = scan.run()?;

    place::create_dir("dir", &request.dir, undo)?;
    let target = directory::diff_path(&request.dir, build);
    let in_place = store::claim(&request.raw, &target, request.mode, undo)?;
    let records = records(&runs, build, in_place, parent.as_ref());
    let job = store::Job { scan: &scan, runs: &runs, records: &records, build, target: &target };
    if in_place {
        // A full file without its zeros still reads the same; a diff does not.
        let lossless = request.kind == Kind::Full && parent.is_none();
        job.in_place(&request.raw, lossless, undo)?;
    } else {
        job.copy(undo)?;
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
    wire::check_interrupt()?;
    store::publish(&request.dir, &header, undo)?;
    if in_place {
        store::release(&request.raw, &target, undo)?;
    }
    let blocks = count(&runs, block_size);
    Ok(Packed { header, blocks, in_place })
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
    fn open(dir: &'a Path) -> Result<Self, Error> {
        let header = directory::read_header(dir)?;
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

impl FromField for Kind {
    const WANTED: &'static str = "\"full\" or \"diff\"";
    fn from_field(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "full" => Some(Self::Full),
            "diff" => Some(Self::Diff),
            _ => None,
        }
    }
}

impl FromField for Mode {
    const WANTED: &'static str = "\"auto\", \"inplace\" or \"copy\"";
    fn from_field(value: &Value) -> Option<Self> {
        match value.as_str()? {
            "auto" => Some(Self::Auto),
            "inplace" => Some(Self::Inplace),
            "copy" => Some(Self::Copy),
            _ => None,
        }
    }
}

/// A build id of a request.
pub(crate) struct BuildId(pub Uuid);

impl FromField for BuildId {
    const WANTED: &'static str = "a UUID other than nil, as 01234567-89ab-cdef-0123-456789abcdef";
    fn from_field(value: &Value) -> Option<Self> {
        let text = value.as_str()?;
        let build = Uuid::try_parse(text).ok().filter(|build| !build.is_nil())?;
        (build.to_string() == text).then_some(Self(build))
    }
}
