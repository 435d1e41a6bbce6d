//! Starting a process: everything that can be refused is refused first, then it runs as its user in a session of
//! its own.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::fd::OwnedFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use tokio::{net::unix::pipe::Sender, sync::Mutex};

use super::{
    Error,
    identity::Identity,
    output::{Kind, Outlet, non_blocking},
    running::{Input, Running},
    terminal::{Size, Terminal},
};
use crate::{agent::Agent, proto::process::ProcessConfig, users::User};

/// Where a process finds commands unless the host or the request says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start, and how.
pub struct Start {
    pub config: ProcessConfig,
    pub user: User,
    pub terminal: Option<Size>,
    pub tag: Option<String>,
    pub stdin: bool,
    /// When the process is killed if it still runs.
    pub deadline: Option<Instant>,
}

/// Starts the process and the task that watches it.
///
/// # Errors
/// When the request names something that is not there, or the kernel refuses; then nothing runs.
pub fn start(agent: &Agent, start: Start) -> Result<Arc<Running>, Error> {
    let Start { config, user, terminal, tag, stdin, deadline } = start;
    check(&config)?;
    let own = User::own();
    if own.uid != 0 && own.uid != user.uid {
        return Err(Error::OtherUser { own: own.name, wanted: user.name });
    }
    let cwd = working_directory(agent, &config, &user)?;
    let env = environment(agent, &config, &user, terminal.is_some());
    let program = find(&config.cmd, env.get("PATH").map_or("", String::as_str), &cwd)?;

    let terminal = terminal.map(|size| Terminal::open(size, &user)).transpose();
    let terminal = terminal.map_err(Error::io("opening a terminal"))?;
    let argv = std::iter::once(&config.cmd).chain(&config.args).map(OsString::from).collect();
    let tty = terminal.as_ref().map(|terminal| terminal.path.clone());
    let mut command = Command::new("/proc/self/exe");
    command.args(Identity::new(&user, tty, program, argv).to_args()).env_clear().envs(env).current_dir(cwd);

    // From fork to entry in the table: the reaper waits for this lock.
    let mut table = agent.processes.lock();
    if let Some(tag) = tag.as_ref().filter(|tag| table.by_tag(tag).is_some()) {
        return Err(Error::TagInUse(tag.clone()));
    }
    let (pid, input, first, second) = match terminal {
        Some(terminal) => in_terminal(command, terminal)?,
        None => on_pipes(command, stdin)?,
    };
    let process = Arc::new(Running::new(pid, tag, config, input));
    let status = table.insert(process.clone());
    drop(table);

    tokio::spawn(process.clone().watch(agent.processes.clone(), first, second, status, deadline));
    Ok(process)
}

type Started = (u32, Input, Outlet, Option<Outlet>);

fn on_pipes(mut command: Command, stdin: bool) -> Result<Started, Error> {
    let (in_read, in_write) = if stdin { pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
    let (out_read, out_write) = pipe()?;
    let (err_read, err_write) = pipe()?;
    let input = match in_write {
        Some(fd) => Input::Pipe(Mutex::new(Some(writer(fd)?))),
        None => Input::Nothing,
    };
    let first = Outlet::new(Kind::Stdout, out_read).map_err(Error::io("watching stdout"))?;
    let second = Outlet::new(Kind::Stderr, err_read).map_err(Error::io("watching stderr"))?;
    command.stdin(in_read.map_or_else(Stdio::null, Stdio::from)).stdout(out_write).stderr(err_write);
    let child = command.spawn().map_err(Error::io("starting the process"))?;
    Ok((child.id(), input, first, Some(second)))
}

fn in_terminal(mut command: Command, terminal: Terminal) -> Result<Started, Error> {
    let doing = "setting up the terminal";
    let reader = terminal.master.try_clone().map_err(Error::io(doing))?;
    let input = Input::Terminal(Mutex::new(writer(terminal.master)?));
    let outlet = Outlet::new(Kind::Pty, reader).map_err(Error::io(doing))?;
    // The child holds the terminal from its first moment on, or its reader would see the end at once.
    let stdin = terminal.slave.try_clone().map_err(Error::io(doing))?;
    let stdout = terminal.slave.try_clone().map_err(Error::io(doing))?;
    let child = command.stdin(stdin).stdout(stdout).stderr(terminal.slave).spawn();
    let child = child.map_err(Error::io("starting the process"))?;
    Ok((child.id(), input, outlet, None))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Error> {
    let (read, write) = std::io::pipe().map_err(Error::io("making a pipe"))?;
    Ok((read.into(), write.into()))
}

fn writer(fd: OwnedFd) -> Result<Sender, Error> {
    non_blocking(fd).and_then(Sender::from_owned_fd_unchecked).map_err(Error::io("watching the input"))
}

/// What the kernel would refuse with less to say.
fn check(config: &ProcessConfig) -> Result<(), Error> {
    if config.cmd.is_empty() {
        return Err(Error::Missing("process.cmd"));
    }
    let invalid = |what, value: &str, problem| Err(Error::Invalid { what, value: value.to_owned(), problem });
    for text in std::iter::once(&config.cmd).chain(&config.args).chain(&config.cwd) {
        if text.contains('\0') {
            return invalid("process", text, "holds a NUL byte");
        }
    }
    for (name, value) in &config.envs {
        if name.is_empty() || name.contains(['=', '\0']) {
            return invalid("process.envs", name, "is no variable name");
        }
        if value.contains('\0') {
            return invalid("process.envs", value, "holds a NUL byte");
        }
    }
    Ok(())
}

/// The request's directory, else the host's default, else the user's home, else the root.
fn working_directory(agent: &Agent, config: &ProcessConfig, user: &User) -> Result<PathBuf, Error> {
    let named = config.cwd.clone().filter(|cwd| !cwd.is_empty()).or_else(|| agent.defaults().workdir.clone());
    let Some(named) = named else {
        return Ok(if user.home.is_dir() { user.home.clone() } else { "/".into() });
    };
    let cwd = user.path(&named);
    match fs::metadata(&cwd) {
        Ok(meta) if meta.is_dir() => Ok(cwd),
        Ok(_) => Err(Error::NotADirectory(cwd)),
        Err(_) => Err(Error::NoDirectory(cwd)),
    }
}

/// The request's variables over the host's over what every process needs.
fn environment(
    agent: &Agent,
    config: &ProcessConfig,
    user: &User,
    terminal: bool,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), PATH.to_owned()),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
    ]);
    if terminal {
        env.insert("TERM".to_owned(), "xterm-256color".to_owned());
    }
    env.extend(agent.defaults().env.clone());
    env.extend(config.envs.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// Finds a command as execvp(3) would, but in the process's own PATH and directory.
fn find(command: &str, path: &str, cwd: &Path) -> Result<PathBuf, Error> {
    if command.contains('/') {
        let program = cwd.join(command);
        return match executable(&program) {
            None => Err(Error::NoCommand(command.to_owned())),
            Some(false) => Err(Error::NotExecutable(program)),
            Some(true) => Ok(program),
        };
    }
    let mut refused = None;
    for directory in path.split(':') {
        let program = cwd.join(directory).join(command);
        match executable(&program) {
            Some(true) => return Ok(program),
            Some(false) => refused = Some(program),
            None => (),
        }
    }
    Err(refused.map_or_else(|| Error::NoCommand(command.to_owned()), Error::NotExecutable))
}

/// Whether the file may be executed by anyone; `None` when it is no file.
fn executable(program: &Path) -> Option<bool> {
    let meta = fs::metadata(program).ok()?;
    Some(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
