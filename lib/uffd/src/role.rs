//! The processes that `wrenn-uffd` starts are `wrenn-uffd` again, under another first word.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use crate::note::note;
use crate::orders::Orders;
use crate::{Error, check, guardian, server};

pub(crate) const PROGRAM: &str = "wrenn-uffd";
pub(crate) const SERVER: &str = "--server";
pub(crate) const GUARDIAN: &str = "--guardian";
pub(crate) const VMM: &str = "--vmm";

/// Plays the part that this process was started for; `None` when it was started by a user. For the program's `main`.
pub fn role() -> Option<ExitCode> {
    let words: Vec<_> = std::env::args().skip(1).take(3).collect();
    let role = words.first().filter(|word| [SERVER, GUARDIAN, VMM].contains(&word.as_str()))?;
    let word = |index: usize| words.get(index).map(String::as_str).unwrap_or_default();
    if role == VMM {
        return Some(check::vmm::run(word(1)));
    }
    let blocked = sys::signals::block().map_err(|source| Error::io("block", "signals")(source).into());
    let played = blocked.and_then(|()| match role == SERVER {
        true => Orders::inherited(word(1), word(2)).map(server::run),
        false => {
            let config = Config::from_json(word(1))?;
            let caller = sys::detach::inherited(1).ok().and_then(|fds| fds.into_iter().next());
            let caller = caller.ok_or_else(|| wire::Error::usage(format!("see {PROGRAM} serve --help")))?;
            Ok(guardian::detached::run(config, caller))
        }
    });
    Some(played.unwrap_or_else(|error| {
        note(format_args!("{PROGRAM}: {role} is for {PROGRAM} itself: {error}"));
        ExitCode::from(error.kind.status())
    }))
}

/// The program that plays these parts: beside the one that runs now, else in PATH.
pub(crate) fn program() -> Result<PathBuf, Error> {
    let mut dir = std::env::current_exe().unwrap_or_default();
    dir.pop();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(dir.clone())
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or(Error::NoProgram { dir })
}
