//! `wrenn-snap pack`: a raw memory file becomes a snapshot, that is a header and a diff file.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;
use wire::{Call, Field, FromField, Reply, Type, Value, Verb, json};

pub use crate::packing::pack;
use crate::{Error, Header, Ranges, Raw, Regions, directory};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need(
            "raw",
            Type::Any,
            "the raw memory file, as a VMM writes it (in place, it is used up); \"-\": stdin, to its end; {pid, regions: [[address, length], …]}: a process's memory",
        ),
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
        Field::may(
            "size",
            Type::Integer,
            "bytes that stdin must have, to tell when it was cut off; default the parent's",
        ),
        Field::may("block_size", Type::Integer, "4096 or 2097152 bytes; default the parent's, else 4096"),
        Field::may(
            "mode",
            Type::OneOf(&["auto", "inplace", "copy"]),
            "inplace: raw becomes the diff file; auto (the default): that, or a copy of it if little is stored, where raw and dir share a file system",
        ),
        Field::may("build", Type::String, "the new diff file's UUID; default random"),
        Field::may(
            "checksums",
            Type::Bool,
            "whether verify can tell a stored byte that changed; default true",
        ),
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
    /// In place where a hard link can be made, else a copy. Where that can be made, but little of a full file is stored
    /// because its parent has the rest, that little is copied and the raw file goes.
    Auto,
    /// The raw file becomes the diff file.
    Inplace,
    /// A new file; the raw file stays.
    Copy,
}

/// What to pack.
#[derive(Debug)]
pub struct Pack {
    /// The memory.
    pub raw: Raw,
    /// The snapshot's directory.
    pub dir: PathBuf,
    /// What the raw file is.
    pub kind: Kind,
    /// What it is relative to.
    pub parent: Option<PathBuf>,
    /// What was discarded since the parent.
    pub removed: Ranges,
    /// Bytes that a pipe must have; `None` for the parent's, else as many as come.
    pub size: Option<u64>,
    /// Bytes of a block; `None` for the parent's, else 4096.
    pub block_size: Option<u64>,
    /// Where the diff file comes from.
    pub mode: Mode,
    /// The diff file's name; `None` for a random one.
    pub build: Option<Uuid>,
    /// Whether checksums of what is stored are kept beside it.
    pub checksums: bool,
}

/// What was packed.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The header as published.
    pub header: Header,
    /// How many blocks are stored, zero and inherited.
    pub blocks: Blocks,
    /// Whether the raw file is used up: it became the diff file, or went once little of it was copied.
    pub raw_used: bool,
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
    let Packed { header, blocks, raw_used } = pack(&request, call.undo)?;
    if raw_used {
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
    call.answer("elapsed_ms", wire::ms(started.elapsed()));
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
    /// All of it with the defaults of the verb.
    pub fn new(raw: impl Into<Raw>, dir: impl Into<PathBuf>, kind: Kind) -> Self {
        Self {
            raw: raw.into(),
            dir: dir.into(),
            kind,
            parent: None,
            removed: Ranges::new(),
            size: None,
            block_size: None,
            mode: Mode::Auto,
            build: None,
            checksums: true,
        }
    }

    fn read(call: &Call) -> Result<Self, wire::Error> {
        let fields = call.fields();
        let kind = fields.need("kind")?;
        let removed = match kind {
            Kind::Full => Ranges::new(),
            Kind::Diff => read_removed(call)?,
        };
        let pack = Self::new(read_raw(call)?, fields.need::<PathBuf>("dir")?, kind);
        Ok(Self {
            parent: fields.find("parent")?,
            removed,
            size: fields.find("size")?,
            block_size: fields.find("block_size")?,
            mode: fields.find("mode")?.unwrap_or(pack.mode),
            build: fields.find::<BuildId>("build")?.map(|build| build.0),
            checksums: fields.find("checksums")?.unwrap_or(pack.checksums),
            ..pack
        })
    }
}

/// The memory: a path, stdin or a process.
fn read_raw(call: &Call) -> Result<Raw, wire::Error> {
    let fields = call.fields();
    match fields.value("raw") {
        Some((_, value)) if value == "-" => {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            Ok(Raw::Pipe(stdin.map_err(Error::io("open", "stdin"))?))
        }
        Some((name, value)) if value.is_object() => {
            let regions = Regions::from_field(value);
            let wanted = || wire::Error::field(&name, format!("must be {}", Regions::WANTED));
            Ok(Raw::Process(regions.ok_or_else(wanted)?))
        }
        _ => Ok(Raw::File(fields.need("raw")?)),
    }
}

impl FromField for Regions {
    const WANTED: &'static str = "{\"pid\": …, \"regions\": [[address, length], …]} in bytes";
    fn from_field(value: &Value) -> Option<Self> {
        let pid = value.get("pid")?.as_i64()?.try_into().ok().filter(|pid| *pid > 0)?;
        let region = |pair: &Value| match pair.as_array()?.as_slice() {
            [address, length] => Some((address.as_u64()?, length.as_u64()?)),
            _ => None,
        };
        let regions = value.get("regions")?.as_array()?.iter().map(region).collect::<Option<_>>()?;
        Some(Self { pid, regions })
    }
}

/// The removed ranges, from where the request has them. None at all means that nothing was discarded.
fn read_removed(call: &Call) -> Result<Ranges, wire::Error> {
    let given = call.fields().value("removed");
    let from_server = || call.document.get("uffd.removed").map(|value| ("uffd.removed".to_owned(), value));
    let Some((name, value)) = given.or_else(from_server) else { return Ok(Ranges::new()) };
    let wrong = |fault| wire::Error::field(&name, fault);
    match PathBuf::from_field(value) {
        Some(path) => {
            let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
            Ranges::parse(&bytes).map_err(|fault| wrong(format!("{}: {fault}", path.display())))
        }
        None => Ranges::from_value(value).map_err(|fault| wrong(fault.to_string())),
    }
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
