//! `wrenn-snap inspect`: what a snapshot directory holds.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Value, Verb, json};

use crate::header::Header;
use crate::pack::{Blocks, text};
use crate::{Error, directory, sums};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[Field::need("dir", Type::Path, "the snapshot's directory")],
    reply: &[
        Field::need("header", Type::Path, "the header, memfile.header"),
        Field::need("build", Type::String, "the UUID of the diff file that came with the header"),
        Field::need("base_build", Type::String, "the UUID of the full image at the beginning of the chain"),
        Field::need("generation", Type::Integer, "diffs between this image and a full one"),
        Field::need("size", Type::Integer, "bytes of memory"),
        Field::need("block_size", Type::Integer, "bytes of a block"),
        Field::need("records", Type::Integer, "records of the header"),
        Field::need("blocks", Type::Object, "how many blocks are {stored, zero, inherited}"),
        Field::need("zero_share", Type::Number, "the part of memory that is zeros, 0 to 1"),
        Field::need(
            "runs",
            Type::Object,
            "fragmentation: runs of memory that lie together, {stored, zero, blocks in one that is stored: mean and longest}",
        ),
        Field::need(
            "diffs",
            Type::Array,
            "diff files, oldest first, each {build, path, bytes, allocated, blocks, share of memory, runs, checksums} (null if missing)",
        ),
        Field::may(
            "workingset",
            Type::Object,
            "memory that restores were seen to ask for first: {bytes, ranges, runs}",
        ),
        Field::may(
            "vmm",
            Type::String,
            "whose state lies beside the memory: firecracker, wrenn-vmm or cloud-hypervisor",
        ),
        Field::need("files", Type::Strings, "everything in the directory"),
    ],
    example: "wrenn-snap inspect dir=/tmp/snapshot --pretty",
    ..Verb::new("inspect", "describe a snapshot", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let dir: PathBuf = call.fields().need("dir")?;
    let header = directory::read_header(&dir)?;
    let files = directory::names(&dir)?;
    call.answer("header", text(&directory::header_path(&dir)));
    call.answer("build", header.build.to_string());
    call.answer("base_build", header.base_build.to_string());
    call.answer("generation", header.generation);
    call.answer("size", header.size);
    call.answer("block_size", header.block_size);
    call.answer("records", header.records.len());
    call.answer("blocks", blocks(&header).to_json());
    call.answer("zero_share", share(&header, bytes(&header, &|build| build.is_nil())));
    call.answer("runs", runs(&header));
    call.answer("diffs", diffs(&dir, &header)?);
    if let Some(set) = directory::working_set(&dir, &header) {
        let likely = set.likely();
        let (bytes, ranges) = (likely.bytes(), likely.ranges().count());
        call.answer("workingset", json!({"bytes": bytes, "ranges": ranges, "runs": set.runs}));
    }
    if let Some((vmm, _)) = directory::vmm(&files) {
        call.answer("vmm", vmm);
    }
    call.answer("files", files);
    Ok(Reply::Document)
}

/// How many blocks of an image are its own build's, zeros and other builds'.
pub fn blocks(header: &Header) -> Blocks {
    let of = |matches: &dyn Fn(Uuid) -> bool| bytes(header, matches) / header.block_size;
    let own = |build: Uuid| build == header.build;
    Blocks {
        stored: of(&own),
        zero: of(&|build| build.is_nil()),
        inherited: of(&|build| !build.is_nil() && !own(build)),
    }
}

fn bytes(header: &Header, matches: &dyn Fn(Uuid) -> bool) -> u64 {
    header.records.iter().filter(|record| matches(record.build)).map(|record| record.length).sum()
}

/// A part of memory, rounded to what anybody looks at.
fn share(header: &Header, bytes: u64) -> f64 {
    (bytes as f64 / header.size as f64 * 10_000.0).round() / 10_000.0
}

/// How memory is scattered.
fn runs(header: &Header) -> Value {
    let stored = || header.records.iter().filter(|record| !record.is_zero()).map(|record| record.length);
    let count = stored().count();
    let blocks = |bytes: u64| bytes / header.block_size;
    let mean = blocks(stored().sum()) as f64 / count.max(1) as f64;
    json!({"stored": count, "zero": header.records.len() - count, "mean": (mean * 10.0).round() / 10.0,
           "longest": blocks(stored().max().unwrap_or(0))})
}

fn diffs(dir: &Path, header: &Header) -> Result<Vec<Value>, Error> {
    let describe = |build: Uuid| {
        let own = bytes(header, &|other| other == build);
        let runs = header.records.iter().filter(|record| record.build == build).count();
        let (path, length, allocated) = match directory::open_diff(dir, header, build) {
            Err(Error::DiffMissing { .. }) => (Value::Null, Value::Null, Value::Null),
            diff => {
                let diff = diff?;
                let metadata = fs::metadata(&diff.path).map_err(Error::io("examine", &diff.path))?;
                (text(&diff.path).into(), metadata.len().into(), (metadata.blocks() * 512).into())
            }
        };
        Ok(json!({"build": build.to_string(), "path": path, "bytes": length, "allocated": allocated,
                  "blocks": own / header.block_size, "share": share(header, own), "runs": runs,
                  "checksums": sums::path(dir, build).exists()}))
    };
    directory::builds_by_age(dir, header).into_iter().map(describe).collect()
}
