//! The processes that `wrenn-uffd` starts are `wrenn-uffd` again, under another first word.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use crate::{Error, check, guardian, server};

pub(crate) const PROGRAM: &str = "wrenn-uffd";
pub(crate) const SERVER: &str = "--server";
pub(crate) const GUARDIAN: &str = "--guardian";
pub(crate) const VMM: &str = "--vmm";

/// Plays the part that this process was started for; `None` when it was started by a user. For the program's `main`.
pub fn role() -> Option<ExitCode> {
    let mut words = std::env::args().skip(1);
    let role = words.next().filter(|word| [SERVER, GUARDIAN, VMM].contains(&word.as_str()))?;
    if role == VMM {
        return Some(check::vmm::run(&words.next().unwrap_or_default()));
    }
    let started = sys::signals::block().and_then(|()| sys::detach::inherited(1));
    let pipe = match started.map(|pipes| pipes.into_iter().next()) {
        Ok(Some(pipe)) => pipe,
        _ => {
            eprintln!("{PROGRAM}: {role} is for {PROGRAM} itself; see {PROGRAM} serve --help");
            return Some(ExitCode::from(wire::Kind::Invalid.status()));
        }
    };
    let config = match Config::from_json(&words.next().unwrap_or_default()) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{PROGRAM}: {role}: {error}");
            return Some(ExitCode::from(error.kind.status()));
        }
    };
    Some(if role == SERVER { server::run(config, File::from(pipe)) } else { guardian::run(config, pipe) })
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
