//! Becoming a user. Between fork and exec only unsafe code may run, so the agent starts itself a second time
//! (`--as`), and this half takes on session, terminal and user, then execs the command in its place.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::OpenOptions,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use nix::unistd::{
    Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, geteuid, setgid, setgroups, setsid, setuid,
};

use crate::{log::say, users::User};

/// The hidden flag of the second half.
pub const FLAG: &str = "--as";

/// The exit statuses a shell gives for the same reasons.
const CANNOT_EXEC: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Whom to become, on which terminal, and what to run then.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    tty: Option<PathBuf>,
    program: PathBuf,
    /// The command's own arguments, its name first.
    argv: Vec<OsString>,
}

impl Identity {
    pub fn new(user: &User, tty: Option<PathBuf>, program: PathBuf, argv: Vec<OsString>) -> Self {
        Self { uid: user.uid, gid: user.gid, groups: user.groups.clone(), tty, program, argv }
    }

    /// The second half's arguments: `--as UID:GID:GROUP,… TTY PROGRAM ARGV…`; a TTY of `-` is none.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut ids = format!("{}:{}:", self.uid, self.gid);
        for (at, group) in self.groups.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(ids, "{comma}{group}"); // a String takes all
        }
        let tty = self.tty.clone().map_or_else(|| "-".into(), PathBuf::into_os_string);
        let mut args = vec![FLAG.into(), ids.into(), tty, self.program.clone().into_os_string()];
        args.extend_from_slice(&self.argv);
        args
    }

    /// Reads what follows `--as`.
    pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut next = |what| args.next().ok_or_else(|| format!("{FLAG}: no {what}"));
        let ids = next("ids")?.into_string().map_err(|ids| format!("{FLAG} {ids:?}"))?;
        let tty = next("terminal")?;
        let program = next("program")?.into();
        let argv: Vec<OsString> = args.collect();
        let bad = || format!("{FLAG} {ids}: not UID:GID:GROUPS");
        let [uid, gid, groups] = ids.split(':').collect::<Vec<_>>()[..] else { return Err(bad()) };
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
        Ok(Self {
            uid: number(uid)?,
            gid: number(gid)?,
            groups: groups
                .split(',')
                .filter(|group| !group.is_empty())
                .map(number)
                .collect::<Result<_, _>>()?,
            tty: (tty != "-").then(|| tty.into()),
            program,
            argv: if argv.is_empty() { return Err(format!("{FLAG}: no command")) } else { argv },
        })
    }

    /// Takes the identity on and execs. Returns only when that fails, with the status a shell would give.
    pub fn exec(self) -> ExitCode {
        if let Err(error) = self.assume() {
            say!("cannot become user {}: {error}", self.uid);
            return ExitCode::from(CANNOT_EXEC);
        }
        let error = Command::new(&self.program).arg0(&self.argv[0]).args(&self.argv[1..]).exec();
        say!("{}: {error}", self.program.display());
        ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_EXEC })
    }

    /// A session of its own comes first: the terminal opened after it becomes its controlling one. Groups go
    /// before the user id, which takes away the right to set them.
    fn assume(&self) -> std::io::Result<()> {
        setsid()?;
        if let Some(path) = &self.tty {
            let tty = OpenOptions::new().read(true).write(true).open(path)?;
            dup2_stdin(&tty)?;
            dup2_stdout(&tty)?;
            dup2_stderr(&tty)?;
        }
        if geteuid().is_root() {
            setgroups(&self.groups.iter().map(|&group| Gid::from_raw(group)).collect::<Vec<_>>())?;
            setgid(Gid::from_raw(self.gid))?;
            setuid(Uid::from_raw(self.uid))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_second_start() {
        let user =
            User { name: "user".into(), uid: 1000, gid: 1001, groups: vec![27, 1001], home: "/".into() };
        for tty in [None, Some("/dev/pts/7".into())] {
            let argv = vec!["sh".into(), "-c".into(), "".into(), "--".into()];
            let identity = Identity::new(&user, tty, "/bin/sh".into(), argv);
            let mut args = identity.to_args().into_iter();
            assert_eq!(args.next().unwrap(), FLAG);
            assert_eq!(Identity::parse(args), Ok(identity));
        }
    }

    #[test]
    fn arguments_cut_short_are_refused() {
        let user = User { name: "root".into(), uid: 0, gid: 0, groups: vec![], home: "/".into() };
        let args = Identity::new(&user, None, "/bin/true".into(), vec!["true".into()]).to_args();
        for length in 1..args.len() {
            assert!(Identity::parse(args[1..length].iter().cloned()).is_err(), "{:?}", &args[1..length]);
        }
    }
}
