//! `wrenn-snap inspect`: what a snapshot directory holds.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Value, Verb, json};

use crate::header::Header;
use crate::pack::{Blocks, text};
use crate::{Error, directory};

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
        Field::need(
            "diffs",
            Type::Array,
            "diff files, each {build, path, bytes, allocated, blocks} (null if missing)",
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
    call.answer("diffs", diffs(&dir, &header)?);
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

fn diffs(dir: &Path, header: &Header) -> Result<Vec<Value>, Error> {
    let describe = |(build, _)| {
        let blocks = bytes(header, &|other| other == build) / header.block_size;
        match directory::open_diff(dir, header, build) {
            Err(Error::DiffMissing { .. }) => Ok(
                json!({"build": build.to_string(), "path": null, "bytes": null, "allocated": null, "blocks": blocks}),
            ),
            diff => {
                let diff = diff?;
                let metadata = fs::metadata(&diff.path).map_err(Error::io("examine", &diff.path))?;
                Ok(json!({"build": build.to_string(), "path": text(&diff.path), "bytes": metadata.len(),
                          "allocated": metadata.blocks() * 512, "blocks": blocks}))
            }
        }
    };
    header.builds().into_iter().map(describe).collect()
}
