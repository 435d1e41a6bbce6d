//! A memory image written anew: some of its blocks stay where they are, the others go into one new diff file.

use std::ops::Range;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use wire::{Call, Field, Type, Undo};

use crate::chain::Chain;
use crate::feed::Append;
use crate::header::Header;
use crate::input::Input;
use crate::pack::{Blocks, BuildId};
use crate::packing::{count, records};
use crate::scan::{Expect, Scan, Scanned};
use crate::spans::{Source, Spans};
use crate::sums::Sums;
use crate::{Error, directory, place, store, sums, workingset};

/// The field that says where.
pub const OUT: Field =
    Field::may("out", Type::Path, "where the new image goes; made if absent; default dir itself");
/// The field that names the new diff file.
pub const BUILD: Field = Field::may("build", Type::String, "the new diff file's UUID; default random");

/// The new build's id, if one is asked for. In a sandbox's document the section's `build` is what `pack` has put there: the
/// build that is there, not the new one.
pub fn new_build(call: &Call) -> Result<Option<Uuid>, wire::Error> {
    let fields = call.fields();
    let of_pack = call.document.get("snapshot.build");
    let asked = fields.value("build").filter(|(_, value)| Some(*value) != of_pack);
    Ok(asked.map(|_| fields.need::<BuildId>("build")).transpose()?.map(|build| build.0))
}

/// The snapshot in `dir`, which nobody else changes meanwhile if it is to be replaced.
///
/// # Errors
/// `conflict` when somebody does; `not_found` and `corrupt` as it is; what the kernel said.
pub fn open(dir: &Path, out: Option<&Path>, undo: &mut Undo) -> Result<Chain, Error> {
    if out.is_none() {
        place::lock_dir(dir, undo)?;
    }
    Chain::open(dir)
}

/// What to write, and where.
pub struct Rewrite<'a> {
    /// The snapshot's directory.
    pub dir: &'a Path,
    /// The snapshot.
    pub old: &'a Chain,
    /// What the new image stands on; none for a full one.
    pub parent: Option<&'a Chain>,
    /// What comparing data with the parent's will find.
    pub expect: Expect,
    /// The new image's.
    pub generation: u64,
    /// Another directory for the new image, memory alone; none to replace the old one.
    pub out: Option<&'a Path>,
    /// The new diff file; `None` for a random one.
    pub build: Option<Uuid>,
}

impl Rewrite<'_> {
    /// Writes it. The ranges, in order, say where the bytes of all memory come from: the parent, nowhere (zeros), or the old
    /// image, of which they are read.
    ///
    /// # Errors
    /// `conflict` when there is a snapshot already or somebody else changes this one; what the kernel said.
    pub fn run(
        &self,
        ranges: impl Iterator<Item = (Range<u64>, Source)>,
        undo: &mut Undo,
    ) -> Result<(Header, Blocks), wire::Error> {
        let build = self.build()?;
        let spans = Spans::known(ranges);
        if let Some(out) = self.out {
            let taken = directory::header_path(out);
            if taken.symlink_metadata().is_ok() {
                return Err(Error::Exists { path: taken }.into());
            }
            place::create_dir("out", out, undo)?;
        }
        let dir = self.out.unwrap_or(self.dir);
        let Scanned { runs, sums } = self.write(&directory::diff_path(dir, build), &spans, undo)?;
        let parent = self.parent.map(|parent| &parent.header);
        let header = Header {
            generation: self.generation,
            build,
            base_build: parent.map_or(build, |parent| parent.base_build),
            records: records(&runs, build, false, parent),
            ..self.old.header
        };
        sums::write(dir, build, &Sums::in_storage(sums, &header.records, build), undo)?;
        wire::check_interrupt()?;
        workingset::carry((self.dir, self.old.header.build), (dir, build), undo);
        match (self.out, self.parent) {
            (Some(out), parent) => {
                parent.map_or(Ok(()), |parent| store::carry_diffs(parent, &header, out, |_| true, undo))?;
                store::publish(out, &header, undo)?;
            }
            (None, parent) => {
                // What the old image is made of is in its directory already, if under an old name.
                let own = |build| self.old.diffs().iter().any(|diff| diff.build == build);
                store::carry_diffs(self.old, &header, dir, |_| true, undo)?;
                parent.map_or(Ok(()), |parent| {
                    store::carry_diffs(parent, &header, dir, |build| !own(build), undo)
                })?;
                self.replace(&header, undo)?;
            }
        }
        Ok((header, count(&runs, self.old.header.block_size)))
    }

    fn build(&self) -> Result<Uuid, Error> {
        let build = self.build.unwrap_or_else(Uuid::new_v4);
        let mut taken = self.parent.into_iter().chain([self.old]).flat_map(Chain::diffs);
        match taken.any(|diff| diff.build == build) {
            true => Err(Error::field("build", format!("{build} is one of the snapshot's or the parent's"))),
            false => Ok(build),
        }
    }

    fn write(&self, target: &Path, spans: &Spans, undo: &mut Undo) -> Result<Scanned, wire::Error> {
        let partial = place::Partial::create(target)?;
        let input = Input::Chain(self.old);
        let scan = Scan {
            what: "rewriting",
            input: &input,
            spans,
            block_size: self.old.header.block_size,
            parent: self.parent,
            expect: self.expect,
            sums: true,
            punch: None,
            append: Some(Append::new(&partial.file, target)),
        };
        let scanned = scan.run()?;
        partial.publish(undo)?;
        Ok(scanned)
    }

    /// The new header takes the old one's place. What only the old one knows goes last: killed before that, it is left over,
    /// and `prune` removes it.
    fn replace(&self, header: &Header, undo: &mut Undo) -> Result<(), Error> {
        directory::open_diffs(self.dir, header)?;
        let stays = header.builds();
        let old = self.old.header.builds().into_iter().map(|(build, _)| build).chain([self.old.header.build]);
        let goes = old.filter(|old| stays.iter().all(|(build, _)| build != old));
        let mut paths: Vec<PathBuf> = goes
            .flat_map(|build| [directory::diff_path(self.dir, build), sums::path(self.dir, build)])
            .collect();
        paths.push(self.dir.join(directory::PLAIN));
        paths.iter().for_each(|path| place::remove_at_commit(path, undo));
        store::republish(self.dir, header, undo)
    }
}
