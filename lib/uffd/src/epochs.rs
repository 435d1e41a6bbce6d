//! Which discards belong to which snapshot.
//!
//! A Diff is relative to a parent. What the VMM discarded before that parent was dumped is in the parent already, and may have
//! been written again since: only what was discarded after it may be told to be zero. So each dump ends an epoch and begins
//! the next, and of each page it is known in which one it was discarded last.

use std::io;
use std::path::{Path, PathBuf};

use crate::state::State;

/// The epochs of a VM's life, numbered from 0: the directory of the dump that ended each.
#[derive(Debug)]
pub(crate) struct Epochs {
    state: State,
    ended: Vec<PathBuf>,
}

impl Epochs {
    /// Those that the state knows of.
    pub fn of(state: &State) -> io::Result<Self> {
        Ok(Self { state: state.clone(), ended: state.dumps()? })
    }

    /// The one that lasts.
    pub fn now(&self) -> u32 {
        self.ended.len() as u32
    }

    /// A snapshot was dumped into this directory.
    pub fn end(&mut self, dir: PathBuf) -> io::Result<()> {
        self.state.add_dump(&self.ended, &dir)?;
        self.ended.push(dir);
        Ok(())
    }

    /// The first one after the last snapshot in `parent`; the first of all when the VM was restored from it, or no parent is
    /// given.
    pub fn since(&self, parent: Option<&Path>) -> u32 {
        // A directory's name may be used again after a failed pause: the last use counts.
        self.ended.iter().rposition(|dir| Some(dir.as_path()) == parent).map_or(0, |at| at as u32 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    #[test]
    fn a_diff_is_told_only_what_was_discarded_after_its_parent() {
        let (first, second) = (Path::new("/gen-1"), Path::new("/gen-2"));
        let state = State::new(&[Region { address: 4096, size: 4096, offset: 0, page_size: 4096 }]).unwrap();
        let mut epochs = Epochs::of(&state).unwrap();
        assert_eq!((epochs.now(), epochs.since(Some(Path::new("/restored-from")))), (0, 0));
        epochs.end(first.into()).unwrap();
        assert_eq!((epochs.now(), epochs.since(Some(first)), epochs.since(None)), (1, 1, 0));
        epochs.end(second.into()).unwrap();
        // A successor goes on from there.
        let mut epochs = Epochs::of(&state).unwrap();
        assert_eq!((epochs.now(), epochs.since(Some(second)), epochs.since(Some(first))), (2, 2, 1));
        // The name is used again.
        epochs.end(first.into()).unwrap();
        assert_eq!((epochs.since(Some(first)), epochs.since(Some(second))), (3, 2));
    }
}
