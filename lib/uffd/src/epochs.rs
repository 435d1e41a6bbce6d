//! Which discards belong to which snapshot.
//!
//! A Diff is relative to a parent. What the VMM discarded before that parent was dumped is in the parent already, and may have
//! been written again since: only what was discarded after it may be told to be zero. So each dump begins an epoch.

use std::path::{Path, PathBuf};

use snap::Removed;

/// The discards of a VM's life, cut at its snapshots.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    /// Each snapshot taken, with what was discarded between the one before it and itself.
    ended: Vec<(PathBuf, Removed)>,
}

impl Epochs {
    /// A snapshot was dumped into this directory; `fresh` was discarded since the one before.
    pub fn end(&mut self, dir: PathBuf, fresh: Removed) {
        self.ended.push((dir, fresh));
    }

    /// What was discarded since the last snapshot in `parent`; all there is when the VM was restored from it, or no parent
    /// is given. `fresh` was discarded since the last snapshot of all.
    pub fn since(&self, parent: Option<&Path>, fresh: &Removed) -> Removed {
        // A directory's name may be used again after a failed pause: the last use counts.
        let from =
            self.ended.iter().rposition(|(dir, _)| Some(dir.as_path()) == parent).map_or(0, |at| at + 1);
        let ended = self.ended[from..].iter().flat_map(|(_, removed)| removed.ranges());
        ended.chain(fresh.ranges()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(removed: &[(u64, u64)]) -> Removed {
        removed.iter().map(|&(start, end)| start..end).collect()
    }

    #[test]
    fn a_diff_is_told_only_what_was_discarded_after_its_parent() {
        let (first, second) = (Path::new("/gen-1"), Path::new("/gen-2"));
        let mut epochs = Epochs::default();
        let fresh = ranges(&[(0, 4096)]);
        assert_eq!(epochs.since(Some(Path::new("/restored-from")), &fresh), fresh);
        epochs.end(first.into(), fresh);
        let fresh = ranges(&[(8192, 12288)]);
        assert_eq!(epochs.since(Some(first), &fresh), fresh);
        assert_eq!(epochs.since(None, &fresh), ranges(&[(0, 4096), (8192, 12288)]));
        epochs.end(second.into(), fresh);
        let fresh = ranges(&[(0, 4096)]);
        assert_eq!(epochs.since(Some(second), &fresh), fresh);
        assert_eq!(epochs.since(Some(first), &fresh), ranges(&[(0, 4096), (8192, 12288)]));
        // Asked twice of one frozen VM: the same answer, relative to the same parent.
        epochs.end(second.into(), Removed::new());
        assert_eq!(epochs.since(Some(second), &fresh), fresh);
    }
}
