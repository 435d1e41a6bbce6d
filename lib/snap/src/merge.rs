//! `wrenn-snap merge`: a chain of diffs becomes shorter, or one full image.

use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Undo, Verb};

use crate::header::Header;
use crate::pack::{self, Blocks};
use crate::rewrite::{self, Rewrite};
use crate::scan::Expect;
use crate::spans::Source;
use crate::{directory, inspect};

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("dir", Type::Path, "the snapshot's directory"),
        Field::may(
            "down_to",
            Type::Integer,
            "the generation it shall be: so many builds, the oldest, stay as they are, and those after them become one; default 0, a full image",
        ),
        rewrite::OUT,
        rewrite::BUILD,
    ],
    reply: pack::REPLY,
    example: "wrenn-snap merge dir=/tmp/snapshot out=/tmp/merged",
    ..Verb::new("merge", "collapse a chain of diffs, all of it or its newer part, in new files", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let started = Instant::now();
    let fields = call.fields();
    let dir: PathBuf = fields.need("dir")?;
    let out: Option<PathBuf> = fields.find("out")?;
    let down_to = fields.find("down_to")?.unwrap_or(0);
    let build = rewrite::new_build(call)?;
    let (header, blocks) = merge(&dir, out.as_deref(), down_to, build, call.undo)?;
    pack::answer(call, out.as_deref().unwrap_or(&dir), &header, blocks, started);
    Ok(Reply::Document)
}

/// Collapses the chain in `dir` to the generation `down_to`, in its place, or in another directory, where memory alone
/// goes. The memory stays what it is. A chain that is no longer than that stays as it is.
///
/// # Errors
/// `conflict` when there is a snapshot in `out` already or somebody else changes this one; `corrupt` when it is damaged;
/// what the kernel said.
pub fn merge(
    dir: &Path,
    out: Option<&Path>,
    down_to: u64,
    build: Option<Uuid>,
    undo: &mut Undo,
) -> Result<(Header, Blocks), wire::Error> {
    let old = rewrite::open(dir, out, undo)?;
    let builds = directory::builds_by_age(dir, &old.header);
    let kept = builds.get(..down_to as usize).unwrap_or(&builds);
    if out.is_none() && kept.len() + 1 >= builds.len() && down_to > 0 && old.header.generation <= down_to {
        let blocks = inspect::blocks(&old.header);
        return Ok((old.header, blocks));
    }
    let rewrite = Rewrite {
        dir,
        old: &old,
        parent: Some(&old).filter(|_| !kept.is_empty()),
        expect: Expect::Nothing,
        generation: kept.len() as u64,
        out,
        build,
    };
    let source = |build: Uuid| match build {
        nil if nil.is_nil() => Source::Zero,
        build if kept.contains(&build) => Source::Parent,
        _ => Source::Raw,
    };
    let ranges = old.header.records.iter().map(|record| (record.offset..record.end(), source(record.build)));
    rewrite.run(ranges, undo)
}
