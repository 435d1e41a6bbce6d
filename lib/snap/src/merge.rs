//! `wrenn-snap merge`: a chain of diffs becomes one full image.

use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Undo, Verb};

use crate::header::{self, Header, Record};
use crate::pack::{self, Blocks};
use crate::{Error, directory, place, store, sums};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("dir", Type::Path, "the snapshot's directory"),
        Field::may("out", Type::Path, "where the merged image goes; made if absent; default dir itself"),
        Field::may("build", Type::String, "the new diff file's UUID; default random"),
    ],
    reply: pack::REPLY,
    example: "wrenn-snap merge dir=/tmp/snapshot out=/tmp/merged",
    ..Verb::new("merge", "collapse a chain of diffs into one full image, in new files", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let started = Instant::now();
    let fields = call.fields();
    let dir: PathBuf = fields.need("dir")?;
    let out: Option<PathBuf> = fields.find("out")?;
    // In a sandbox's document the section's `build` is what `pack` has put there: the build to merge, not the new one.
    let of_pack = call.document.get("snapshot.build");
    let asked = fields.value("build").filter(|(_, value)| Some(*value) != of_pack);
    let build = asked.map(|_| fields.need::<pack::BuildId>("build")).transpose()?.map(|build| build.0);
    let (header, blocks) = match &out {
        Some(out) => merge_into(&dir, out, build, call.undo)?,
        None => merge(&dir, build, call.undo)?,
    };
    pack::answer(call, out.as_deref().unwrap_or(&dir), &header, blocks, started);
    Ok(Reply::Document)
}

/// Writes the memory image in `dir` as a full one into another directory. Memory alone goes there.
///
/// # Errors
/// `conflict` when there is a snapshot already; `corrupt` when the one to merge is damaged; what the kernel said.
pub fn merge_into(
    dir: &Path,
    out: &Path,
    build: Option<Uuid>,
    undo: &mut Undo,
) -> Result<(Header, Blocks), wire::Error> {
    let old = directory::read_header(dir)?;
    let taken = directory::header_path(out);
    if taken.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: taken }.into());
    }
    // Damage is found before anything is made.
    directory::open_diffs(dir, &old)?;
    place::create_dir("out", out, undo)?;
    let (header, blocks) = write_full(dir, &old, out, build, undo)?;
    store::publish(out, &header, undo)?;
    Ok((header, blocks))
}

/// Replaces the memory image in `dir` by a full one: beside the old files, which go once the new header has its name.
///
/// # Errors
/// `corrupt` when the snapshot is damaged; what the kernel said.
pub fn merge(dir: &Path, build: Option<Uuid>, undo: &mut Undo) -> Result<(Header, Blocks), wire::Error> {
    let old = directory::read_header(dir)?;
    let (header, blocks) = write_full(dir, &old, dir, build, undo)?;
    // What only the old header knows goes last.
    let plain = dir.join(directory::PLAIN);
    let builds = old.builds().into_iter().map(|(build, _)| build).chain([old.build]);
    let paths = builds.flat_map(|build| [directory::diff_path(dir, build), sums::path(dir, build)]);
    for path in paths.chain([plain]) {
        place::remove_at_commit(&path, undo);
    }
    store::republish(dir, &header, undo)?;
    Ok((header, blocks))
}

/// Writes all that is stored of an image into one new diff file. Returns the header that belongs to it.
fn write_full(
    dir: &Path,
    old: &Header,
    out: &Path,
    build: Option<Uuid>,
    undo: &mut Undo,
) -> Result<(Header, Blocks), wire::Error> {
    let build = build.unwrap_or_else(Uuid::new_v4);
    let diffs = directory::open_diffs(dir, old)?;
    if diffs.iter().any(|diff| diff.build == build) {
        return Err(Error::field("build", format!("{build} is one of the snapshot's")).into());
    }
    let partial = place::Partial::create(&directory::diff_path(out, build))?;
    let mut records = Vec::new();
    let mut stored = 0;
    for record in &old.records {
        store::copy_record(&diffs, record, &partial.file, stored)?;
        let moved = match record.is_zero() {
            true => Record { storage_offset: 0, ..*record },
            false => Record { build, storage_offset: stored, ..*record },
        };
        stored += if record.is_zero() { 0 } else { record.length };
        header::push(&mut records, moved);
    }
    let sums = sums::of_file(&partial.file, &directory::diff_path(out, build), stored)?;
    partial.publish(undo)?;
    sums::write(out, build, &sums, undo)?;
    let blocks =
        Blocks { stored: stored / old.block_size, zero: (old.size - stored) / old.block_size, inherited: 0 };
    let header = Header { generation: 0, build, base_build: build, records, ..*old };
    Ok((header, blocks))
}
