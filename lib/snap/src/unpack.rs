//! `wrenn-snap unpack`: the whole memory of a snapshot as one sparse file.

use std::path::Path;
use std::time::Instant;

use wire::{Call, Field, Reply, Type, Undo, Verb};

use crate::header::Header;
use crate::{Error, directory, place, store};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("dir", Type::Path, "the snapshot's directory"),
        Field::need("raw", Type::Path, "the file to write; one that is there is replaced"),
        Field::may("offset", Type::Integer, "where in memory it begins, in bytes; default 0"),
        Field::may("length", Type::Integer, "how many bytes it gets; default all to the end of memory"),
    ],
    reply: &[
        Field::need("size", Type::Integer, "bytes of memory"),
        Field::need("build", Type::String, "the snapshot's build"),
        Field::need("generation", Type::Integer, "diffs between this image and a full one"),
        Field::need("elapsed_ms", Type::Number, "how long it took, in milliseconds"),
    ],
    example: "wrenn-snap unpack dir=/tmp/snapshot raw=/tmp/mem.raw",
    ..Verb::new("unpack", "write a snapshot's whole memory as one sparse file", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let started = Instant::now();
    let fields = call.fields();
    let (dir, raw): (std::path::PathBuf, std::path::PathBuf) = (fields.need("dir")?, fields.need("raw")?);
    let (offset, length) = (fields.find("offset")?.unwrap_or(0), fields.find("length")?);
    let header = unpack(&dir, &raw, offset, length, call.undo)?;
    call.answer("size", header.size);
    call.answer("build", header.build.to_string());
    call.answer("generation", header.generation);
    call.answer("elapsed_ms", wire::ms(started.elapsed()));
    Ok(Reply::Document)
}

/// Writes the memory image in `dir` from `offset` on, `length` bytes or all, to `raw`, which appears complete or not at all.
///
/// # Errors
/// `not_found` when there is no snapshot, `corrupt` when it is damaged, `invalid` when the range is not memory's; what the
/// kernel said.
pub fn unpack(
    dir: &Path,
    raw: &Path,
    offset: u64,
    length: Option<u64>,
    undo: &mut Undo,
) -> Result<Header, wire::Error> {
    let header = directory::read_header(dir)?;
    let diffs = directory::open_diffs(dir, &header)?;
    let end = length.map_or(Some(header.size), |length| offset.checked_add(length));
    let end = end.filter(|end| offset < *end && *end <= header.size).ok_or_else(|| {
        let length = length.map_or("all".into(), |length| length.to_string());
        Error::field(
            "offset",
            format!("{length} bytes from {offset} on are not in the {} of memory", header.size),
        )
    })?;
    if raw.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
        return Err(Error::field("raw", format!("{} is not a regular file", raw.display())).into());
    }
    let partial = place::Partial::create(raw)?;
    partial.file.set_len(end - offset).map_err(Error::io("write", raw))?;
    let stored =
        header.range(offset, end).filter(|record| !record.is_zero()).map(|record| record.length).sum();
    let progress = wire::Progress::bytes("unpacking", Some(stored));
    for record in header.range(offset, end) {
        store::copy_record(&diffs, &record, &partial.file, record.offset - offset, &progress)?;
    }
    partial.replace(undo)?;
    place::sync_dir(raw.parent().unwrap_or(raw))?;
    Ok(header)
}
