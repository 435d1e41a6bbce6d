//! Files that live as long as the sandbox runs: `<root>/sandboxes/<id>/live/rootfs.cow`.

use std::path::{Path, PathBuf};

use wire::Undo;

use crate::Error;
use crate::device::gone_is_fine;
use crate::new_file::NewFile;
use crate::owner::Owner;

/// The name of a live disk; one that is taken is followed by `rootfs-2.cow`, `rootfs-3.cow`, ….
const STEM: &str = "rootfs";

/// A new file on its way to be a live disk, in a directory made for it if need be.
pub(crate) fn new_in(dir: &Path, undo: &mut Undo) -> Result<NewFile, Error> {
    make_dir(dir, undo)?;
    NewFile::in_dir(dir, 0o600).map_err(Error::io("make a file in", dir))
}

/// Gives a new file its name.
pub(crate) fn publish(new: NewFile, path: &Path, undo: &mut Undo) -> Result<(), Error> {
    new.publish(path).map_err(Error::io("make", path))?;
    let path = path.to_owned();
    undo.push(format!("file {}", path.display()), move || {
        Ok(std::fs::remove_file(&path).or_else(gone_is_fine).map_err(Error::io("remove", path))?)
    });
    Ok(())
}

/// Makes the directory and what is missing above it; undone level by level, as far as they are empty.
fn make_dir(dir: &Path, undo: &mut Undo) -> Result<(), Error> {
    let missing: Vec<PathBuf> = dir.ancestors().take_while(|dir| !dir.exists()).map(Path::to_owned).collect();
    std::fs::create_dir_all(dir).map_err(Error::io("make", dir))?;
    for dir in missing.into_iter().rev() {
        undo.push(format!("directory {}", dir.display()), move || {
            // Not empty: somebody else uses it too by now.
            let _ = std::fs::remove_dir(dir);
            Ok(())
        });
    }
    Ok(())
}

/// The first name for a live disk that is free.
pub(crate) fn free_name(dir: &Path) -> PathBuf {
    let first = std::iter::once(format!("{STEM}.cow"));
    let names = first.chain((2..).map(|number| format!("{STEM}-{number}.cow")));
    names.map(|name| dir.join(name)).find(|path| !path.exists()).unwrap_or_else(|| dir.join(STEM))
}

/// The live disks in a directory, and what is left of those that were being made.
pub(crate) fn files(dir: &Path) -> Vec<PathBuf> {
    let is_disk = |name: &str| {
        let name = name.strip_prefix('.').unwrap_or(name);
        name.starts_with(STEM) && (name.ends_with(".cow") || name.ends_with(".tmp"))
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_disk))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Removes the directory of live files, and the sandbox's own, if nothing is in them.
pub(crate) fn remove_dir(owner: &Owner) {
    let _ = std::fs::remove_dir(owner.live_dir());
    let _ = std::fs::remove_dir(owner.dir());
}
