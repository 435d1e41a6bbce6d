//! What the VMM's threads wait for, to be named when it takes too long.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError, Weak};

use sys::uffd::Uffd;

static WAITS: Mutex<Waits> =
    Mutex::new(Waits { next: 0, open: BTreeMap::new(), uffd: Weak::new(), wrong: None });

struct Waits {
    next: u64,
    open: BTreeMap<u64, Wait>,
    uffd: Weak<Uffd>,
    wrong: Option<String>,
}

struct Wait {
    what: &'static str,
    pages: Range<usize>,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pages.len() {
            1 => write!(f, "{} page {}", self.what, self.pages.start),
            _ => write!(f, "{} pages {} to {}", self.what, self.pages.start, self.pages.end - 1),
        }
    }
}

fn waits() -> std::sync::MutexGuard<'static, Waits> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something with these pages that may wait for the server.
pub(crate) fn during<T>(what: &'static str, pages: Range<usize>, work: impl FnOnce() -> T) -> T {
    let key = {
        let mut waits = waits();
        waits.next += 1;
        let key = waits.next;
        waits.open.insert(key, Wait { what, pages });
        key
    };
    let done = work();
    waits().open.remove(&key);
    done
}

/// The userfaultfd whose faults are counted in [`describe`].
pub(crate) fn watch(uffd: Weak<Uffd>) {
    waits().uffd = uffd;
}

/// Notes what a thread has found wrong: others that wait for ever must not keep it from being said.
pub(crate) fn found_wrong(what: &str) {
    waits().wrong.get_or_insert_with(|| what.to_owned());
}

/// The first that was found wrong.
pub(crate) fn wrong() -> Option<String> {
    waits().wrong.clone()
}

/// Who waits, for longest first; `None` when nobody does.
pub(crate) fn describe() -> Option<String> {
    let waits = waits();
    let mut text = waits.open.values().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if waits.open.len() > 3 {
        text += &format!(" and {} more", waits.open.len() - 3);
    }
    if let Some(Ok(waiting)) = waits.uffd.upgrade().map(|uffd| uffd.waiting()) {
        text += &format!(" ({} faults wait, {} of them unread)", waiting.faults, waiting.unread);
    }
    (!waits.open.is_empty()).then_some(text)
}
