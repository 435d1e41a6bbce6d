//! The command line: what Firecracker's has and this VMM needs.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::logger::Level;

/// What `--help` prints.
pub const HELP: &str = "\
wrenn-vmm: a small VMM that speaks Firecracker's API. For development, CI and trusted guests.

Usage: wrenn-vmm [OPTION [VALUE]]…

  --api-sock PATH      Unix socket of the API; must not exist [/run/wrenn-vmm.socket]
  --id ID              name in the API and the log, 1 to 64 letters, digits and hyphens [anonymous-instance]
  --log-path FILE      where the log goes [standard output]
  --level LEVEL        Off, Error, Warning, Info, Debug or Trace [Info]
  --show-level         name the level in each line of the log
  --show-log-origin    name the place in the source in each line of the log
  --metrics-path FILE  where metrics go [nowhere]
  --no-seccomp         run without system call filters
  --version            print the version
  --help               print this
";

/// What the command line asks for.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// A VMM.
    Run(Args),
    /// The help.
    Help,
    /// The version.
    Version,
}

/// How the VMM is to run.
#[derive(Debug, PartialEq)]
#[allow(missing_docs, reason = "HELP says what they are")]
pub struct Args {
    pub api_sock: PathBuf,
    pub id: String,
    pub log_path: Option<PathBuf>,
    pub level: Option<Level>,
    pub show_level: bool,
    pub show_log_origin: bool,
    pub metrics_path: Option<PathBuf>,
    pub seccomp: bool,
}

/// Why a command line cannot be understood.
#[derive(Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error(
        "Arguments parsing error: Found argument '{0}' which wasn't expected, or isn't valid in this context."
    )]
    Unknown(String),
    #[error("Arguments parsing error: The argument '{0}' requires a value, but none was supplied.")]
    NoValue(String),
    #[error("Arguments parsing error: The argument '{0}' was provided more than once.")]
    Twice(String),
    #[error("Invalid instance ID {0:?}: it must have 1 to 64 letters, digits and hyphens.")]
    Id(String),
    #[error("Invalid value for '--level': {0}")]
    Level(String),
}

impl Error {
    /// Firecracker's exit status for it.
    pub fn status(&self) -> u8 {
        if matches!(self, Self::Level(_)) { 152 } else { 153 }
    }
}

/// Understands a command line, without the program's name.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut args = Args {
        api_sock: "/run/wrenn-vmm.socket".into(),
        id: "anonymous-instance".into(),
        log_path: None,
        level: None,
        show_level: false,
        show_log_origin: false,
        metrics_path: None,
        seccomp: true,
    };
    let mut seen = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let name = word.to_string_lossy().into_owned();
        if seen.contains(&name) {
            return Err(Error::Twice(name));
        }
        let mut value = || words.next().ok_or_else(|| Error::NoValue(name.clone()));
        match name.as_str() {
            "--api-sock" => args.api_sock = value()?.into(),
            "--id" => args.id = id(value()?)?,
            "--log-path" => args.log_path = Some(value()?.into()),
            "--level" => args.level = Some(value()?.to_string_lossy().parse().map_err(Error::Level)?),
            "--metrics-path" => args.metrics_path = Some(value()?.into()),
            "--show-level" => args.show_level = true,
            "--show-log-origin" => args.show_log_origin = true,
            "--no-seccomp" => args.seccomp = false,
            "--help" | "-h" => return Ok(Command::Help),
            "--version" | "-V" => return Ok(Command::Version),
            _ => return Err(Error::Unknown(name)),
        }
        seen.push(name);
    }
    Ok(Command::Run(args))
}

fn id(word: OsString) -> Result<String, Error> {
    let text = word.to_string_lossy().into_owned();
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if (1..=64).contains(&text.len()) && text.bytes().all(valid) { Ok(text) } else { Err(Error::Id(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Command, Error> {
        parse(text.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_drivers_command_line_is_understood() {
        let Ok(Command::Run(args)) = of("--api-sock /tmp/a --id sb-1 --level Warning") else { panic!() };
        assert_eq!((args.api_sock.to_str(), args.id.as_str(), args.seccomp), (Some("/tmp/a"), "sb-1", true));
        assert_eq!(args.level, Some("Warning".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_has_firecrackers_exit_status() {
        let long = "x".repeat(65);
        for (text, status) in [
            ("--bogus", 153),
            ("stray", 153),
            ("--id", 153),
            ("--id a_b", 153),
            (&format!("--id {long}"), 153),
            ("--show-level --show-level", 153),
            ("--level Loud", 152),
        ] {
            assert_eq!(of(text).map_err(|error| error.status()), Err(status), "{text}");
        }
        assert_eq!(of("--id a --help"), Ok(Command::Help));
        assert_eq!(of("--version"), Ok(Command::Version));
    }
}
