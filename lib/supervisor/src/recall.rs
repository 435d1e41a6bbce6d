//! Calling a pause back: until the new generation is published, `wrenn resume` can have the running VM again.
//!
//! The mark `<run>/<id>/recall` asks for it. Signals to the program that pauses do the same.

use std::fs::{self, File};
use std::path::PathBuf;

use store::Sandboxes;
use wire::{Error, Host, Id, Kind};

fn path(host: &Host, id: &Id) -> PathBuf {
    host.run_dir(id).join("recall")
}

/// A mark that was left. It goes with the value.
pub struct Mark {
    path: PathBuf,
}

/// Asks for the VM of a sandbox that is being paused. `None` when it is not.
pub fn ask(host: &Host, id: &Id) -> Option<Mark> {
    let document = Sandboxes::of(host).load(id).ok()?;
    if document.get("state").is_none_or(|state| state != "pausing") {
        return None;
    }
    let path = path(host, id);
    // Where the directory is gone the pause is past the point where it could be called back.
    let left = File::create(&path);
    left.map_err(|error| log::info!("{id}: its pause cannot be called back: {error}")).ok()?;
    Some(Mark { path })
}

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // The VM's other files have gone while this one was in the way of the directory.
        let _ = self.path.parent().map(fs::remove_dir);
    }
}

/// Forgets a mark, of somebody who has given up, or who is about to be answered.
pub fn forget(host: &Host, id: &Id) {
    let _ = fs::remove_file(path(host, id));
}

/// Does the first half of a pause: it ends with `conflict` when somebody asks for the VM.
pub fn unless_recalled<T>(host: &Host, id: &Id, work: impl FnOnce() -> T) -> T {
    let (path, id) = (path(host, id), id.clone());
    let check = move || match path.exists() {
        true => Err(Error::new(
            Kind::Conflict,
            "wrenn.recalled",
            format!("the pause of {id} was called back: it goes on running"),
        )),
        false => Ok(()),
    };
    wire::unless(check, work)
}
