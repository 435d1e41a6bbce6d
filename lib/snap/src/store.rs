//! The files of a snapshot being made: the diff file, in place or copied; the parents' diff files; the header.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use uuid::Uuid;
use wire::Undo;

use crate::chain::Chain;
use crate::directory::Diff;
use crate::header::{Header, Record};
use crate::pack::Mode;
use crate::scan::{Fate, Run};
use crate::spans::Spans;
use crate::{Error, directory, place, sums};

/// Gives the raw file its second name, the diff file's, where the mode wants that and the file systems allow it.
/// Returns the file, to be written to, if so: packing is in place.
///
/// # Errors
/// `conflict` when the name is taken, `invalid` when the mode asks for what cannot be.
pub fn claim(raw: &Path, target: &Path, mode: Mode, undo: &mut Undo) -> Result<Option<File>, Error> {
    if mode == Mode::Copy {
        return Ok(None);
    }
    let linked = match fs::symlink_metadata(raw) {
        Ok(metadata) if metadata.is_symlink() => Err(Errno::ELOOP.into()),
        _ => fs::hard_link(raw, target),
    };
    match linked {
        Ok(()) => {
            let file = File::options().write(true).open(raw).map_err(Error::io("write to", raw));
            let (raw, target) = (raw.to_owned(), target.to_owned());
            undo.push(target.display().to_string(), move || {
                // The last name of that memory is not taken away.
                if !crate::spans::same_file(&raw, &target) {
                    let lost = io::Error::from(io::ErrorKind::NotFound);
                    return Err(Error::io("give back the name", raw)(lost).into());
                }
                place::gone(fs::remove_file(&target))
                    .map_err(|error| Error::io("remove", target)(error).into())
            });
            file.map(Some)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Error::Exists { path: target.to_owned() })
        }
        Err(error) if !cannot_link(&error) => Err(Error::io("link", target)(error)),
        Err(_) if mode == Mode::Auto => Ok(None),
        Err(error) => {
            let what =
                format!("inplace needs a hard link from {} to {}: {error}", raw.display(), target.display());
            Err(Error::field("mode", what))
        }
    }
}

/// Whether hard links are impossible between these two names: other file system, none on this one, a symlink.
fn cannot_link(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EXDEV | Errno::EPERM | Errno::EOPNOTSUPP | Errno::EMLINK | Errno::ELOOP))
}

/// Takes the raw file's own name away once the snapshot is published; undoing gives it back.
///
/// # Errors
/// What the kernel said.
pub fn release(raw: &Path, target: &Path, undo: &mut Undo) -> Result<(), Error> {
    fs::remove_file(raw).map_err(Error::io("remove", raw))?;
    let (from, to) = (target.to_owned(), raw.to_owned());
    undo.push(raw.display().to_string(), move || {
        fs::hard_link(from, &to).map_err(|error| Error::io("give back", to)(error).into())
    });
    Ok(())
}

/// Whether less than a quarter of the raw file's data is stored.
pub fn is_little(runs: &[Run]) -> bool {
    let of = |wanted: fn(&&Run) -> bool| runs.iter().filter(wanted).map(Run::length).sum::<u64>();
    of(|run| run.data && run.fate == Fate::Stored) < of(|run| run.data) / 4
}

/// Lets a raw file go of which all that matters was copied, once nothing can be undone any more: if it could have been
/// packed in place, by a name beside `target`. Returns whether it goes.
///
/// # Errors
/// What looking at it said.
pub fn take_away(raw: &Path, target: &Path, undo: &mut Undo) -> Result<bool, Error> {
    let metadata = |path: &Path| fs::symlink_metadata(path).map_err(Error::io("examine", path));
    let (one, other) = (metadata(raw)?, metadata(target)?);
    let goes = one.is_file() && one.dev() == other.dev();
    if goes {
        place::remove_at_commit(raw, undo);
    }
    Ok(goes)
}

/// Makes holes of what a raw file holds and the diff file need not, when nothing can be undone any more.
///
/// # Errors
/// What the kernel said.
pub fn punch_at_commit(file: &File, path: &Path, runs: &[Run], undo: &mut Undo) -> Result<(), Error> {
    let unused = runs.iter().filter(|run| run.data && run.fate != Fate::Stored);
    let unused: Vec<Range<u64>> = unused.map(|run| run.range.clone()).collect();
    let file = file.try_clone().map_err(Error::io("open", path))?;
    let path = path.to_owned();
    place::at_commit("holes", undo, move || {
        if let Err(error) = unused.into_iter().try_for_each(|range| place::punch(&file, range)) {
            log::warn!("cannot free what {} need not hold: {error}", path.display());
        }
    });
    Ok(())
}

/// Copies what is stored of a raw file that was scanned into a new diff file, end to end; shared where it can be.
///
/// # Errors
/// What the kernel said; `timeout` when interrupted.
pub fn copy_stored(
    raw: &File,
    runs: &[Run],
    partial: place::Partial,
    undo: &mut Undo,
) -> Result<(), wire::Error> {
    let mut end = 0;
    for run in runs.iter().filter(|run| run.fate == Fate::Stored) {
        wire::check_interrupt()?;
        place::copy_range(raw, run.range.start, &partial.file, end, run.length())
            .map_err(Error::io("write", &partial.target))?;
        end += run.length();
    }
    Ok(partial.publish(undo)?)
}

/// Puts the parent's pages into the stored blocks of `range` that have some of their own, in the raw file itself.
///
/// # Errors
/// What the kernel said.
pub fn fill_from_parent(
    spans: &Spans,
    parent: Option<&Chain>,
    range: &Range<u64>,
    file: &File,
    path: &Path,
) -> Result<(), Error> {
    let Some(parent) = parent else { return Ok(()) };
    let mut buffer = Vec::new();
    for inherited in spans.inherited(range.clone()) {
        // A block's pages, not more: they are within one.
        buffer.resize((inherited.end - inherited.start) as usize, 0);
        parent.read(inherited.start, &mut buffer)?;
        file.write_all_at(&buffer, inherited.start).map_err(Error::io("write", path))?;
    }
    Ok(())
}

/// Brings along the diff files of `from` that `header` refers to, of the builds that are wanted.
///
/// # Errors
/// `conflict` when another file has the name; what the kernel said.
pub fn carry_diffs(
    from: &Chain,
    header: &Header,
    dir: &Path,
    of: impl Fn(Uuid) -> bool,
    undo: &mut Undo,
) -> Result<(), wire::Error> {
    let builds = header.builds();
    let wanted = |diff: &&Diff| of(diff.build) && builds.iter().any(|(build, _)| *build == diff.build);
    for diff in from.diffs().iter().filter(wanted) {
        wire::check_interrupt()?;
        place::carry(&diff.path, &directory::diff_path(dir, diff.build), undo)?;
        let of = diff.path.parent().unwrap_or(Path::new("/"));
        let sums = sums::path(of, diff.build);
        if sums.exists() {
            place::carry(&sums, &sums::path(dir, diff.build), undo)?;
        }
    }
    Ok(())
}

/// Copies the bytes of one record out of its diff file, sharing them where the file system can.
///
/// # Errors
/// What the kernel said; `timeout` when interrupted.
pub fn copy_record(
    diffs: &[Diff],
    record: &Record,
    to: &File,
    at: u64,
    progress: &wire::Progress,
) -> Result<(), wire::Error> {
    /// Between two looks at whether to stop.
    const STEP: u64 = 64 << 20;
    let Some(diff) = diffs.iter().find(|diff| diff.build == record.build) else { return Ok(()) };
    for done in (0..record.length).step_by(STEP as usize) {
        wire::check_interrupt()?;
        let length = STEP.min(record.length - done);
        place::copy_range(&diff.file, record.storage_offset + done, to, at + done, length)
            .map_err(Error::io("copy from", &diff.path))?;
        progress.add(length);
    }
    Ok(())
}

/// Writes the header, last: with it the directory is a snapshot. The names of the diff files are made to last before
/// the header's is.
///
/// # Errors
/// `conflict` when there is one; what the kernel said.
pub fn publish(dir: &Path, header: &Header, undo: &mut Undo) -> Result<(), Error> {
    place::sync_dir(dir)?;
    place::write_new(&directory::header_path(dir), &header.to_bytes(), undo)?;
    place::sync_dir(dir)
}

/// Writes the header over the one that is there, in one step.
///
/// # Errors
/// What the kernel said.
pub fn republish(dir: &Path, header: &Header, undo: &mut Undo) -> Result<(), Error> {
    place::sync_dir(dir)?;
    let path = directory::header_path(dir);
    let partial = place::Partial::create(&path)?;
    io::Write::write_all(&mut &partial.file, &header.to_bytes()).map_err(Error::io("write", &path))?;
    partial.replace(undo)?;
    place::sync_dir(dir)
}
