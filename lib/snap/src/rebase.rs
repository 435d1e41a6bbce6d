//! `wrenn-snap rebase`: the same memory, on top of another snapshot.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use uuid::Uuid;
use wire::{Call, Field, Reply, Type, Undo, Verb};

use crate::Error;
use crate::chain::Chain;
use crate::header::Header;
use crate::pack::{self, Blocks};
use crate::rewrite::{self, Rewrite};
use crate::scan::Expect;
use crate::spans::Source;

/// The verb.
pub const VERB: Verb = Verb {
    fields: &[
        Field::need("dir", Type::Path, "the snapshot's directory"),
        Field::need("parent", Type::Path, "the snapshot that it shall be relative to, of the same size"),
        rewrite::OUT,
        rewrite::BUILD,
    ],
    reply: pack::REPLY,
    example: "wrenn-snap rebase dir=/tmp/snapshot parent=/tmp/template out=/tmp/rebased",
    ..Verb::new("rebase", "store of a snapshot only what differs from another one", run)
};

fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let started = Instant::now();
    let fields = call.fields();
    let (dir, parent): (PathBuf, PathBuf) = (fields.need("dir")?, fields.need("parent")?);
    let out: Option<PathBuf> = fields.find("out")?;
    let build = rewrite::new_build(call)?;
    let (header, blocks) = rebase(&dir, &parent, out.as_deref(), build, call.undo)?;
    pack::answer(call, out.as_deref().unwrap_or(&dir), &header, blocks, started);
    Ok(Reply::Document)
}

/// Stores the memory image in `dir` as a diff on `parent`: in its place, or in another directory, where memory alone goes.
/// All that differs is in one new diff file. The memory stays what it is.
///
/// # Errors
/// `invalid` when the parent is of another size; `conflict` when there is a snapshot in `out` already or somebody else
/// changes this one; `corrupt` when one of them is damaged; what the kernel said.
pub fn rebase(
    dir: &Path,
    parent: &Path,
    out: Option<&Path>,
    build: Option<Uuid>,
    undo: &mut Undo,
) -> Result<(Header, Blocks), wire::Error> {
    let old = rewrite::open(dir, out, undo)?;
    let parent = Chain::open_any(parent, Some(old.header.block_size))?;
    let like = |header: &Header| (header.size, header.block_size);
    if like(&old.header) != like(&parent.header) {
        let what = |(size, block_size)| format!("{size} bytes in blocks of {block_size}");
        let what = format!("has {}, the snapshot {}", what(like(&parent.header)), what(like(&old.header)));
        return Err(Error::field("parent", what).into());
    }
    let rewrite = Rewrite {
        dir,
        old: &old,
        parent: Some(&parent),
        expect: Expect::Same,
        generation: parent.header.generation + 1,
        out,
        build,
    };
    rewrite.run(ranges(&old.header, &parent.header), undo)
}

/// Where memory's bytes come from: what lies in the same place of the same diff file need not be compared.
fn ranges<'a>(old: &'a Header, parent: &'a Header) -> impl Iterator<Item = (Range<u64>, Source)> + 'a {
    old.records.iter().flat_map(|record| {
        parent.range(record.offset, record.end()).map(|of_parent| {
            let own = record.clip(of_parent.offset, of_parent.end());
            let source = match () {
                () if own.is_zero() => Source::Zero,
                () if own == of_parent => Source::Parent,
                () => Source::Raw,
            };
            (own.offset..own.end(), source)
        })
    })
}
