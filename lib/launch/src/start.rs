//! Starting a VMM: from nothing to a process that answers on its socket, configured with nothing yet.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sys::process::Process;
use wire::{Host, Id, Map, Undo, Value};

use crate::api::Api;
use crate::choose::Choice;
use crate::driver::{self, Driver};
use crate::plan::Plan;
use crate::runfiles::{Base, Console, RUN, RunFiles, remove};
use crate::section::{State, process_fields};
use crate::{Error, WORKDIR, child, owner};

/// From the start of the program to its socket. Firecracker takes 2 ms; under emulation half a second, times all that start
/// beside it.
const READY: Duration = Duration::from_secs(30);

/// A VMM that was just started.
pub(crate) struct Started {
    pub driver: &'static dyn Driver,
    pub api: Api,
    process: Process,
    exit: Receiver<ExitStatus>,
    files: RunFiles,
    console: Console,
}

/// Starts a VMM that sees `shown`: sources on the host, targets in its own /tmp. Every step is on `undo`.
pub(crate) fn start(
    host: &Host,
    id: &Id,
    choice: Choice,
    netns: Option<PathBuf>,
    mut shown: Vec<(PathBuf, PathBuf)>,
    undo: &mut Undo,
) -> Result<Started, wire::Error> {
    let Choice { driver, program } = choice;
    let helper = helper()?;
    check_kvm()?;

    let files = RunFiles::of(host, id);
    files.check_free(id)?;
    make_run_dir(&files, undo)?;
    let console = files.open_console(undo)?;
    // Watched from before the start on, so that the socket cannot appear unseen.
    let watch = watch(files.dir())?;

    let (seen_program, seen_run) = (Path::new(WORKDIR).join(driver.name()), Path::new(WORKDIR).join(RUN));
    let mut command = vec![seen_program.to_string_lossy().into_owned()];
    command.extend(driver.arguments(id, &seen_run.join(RunFiles::SOCKET)));
    shown.extend([(program, seen_program), (files.dir().into(), seen_run)]);
    let plan = Plan { netns, shown, command };

    let (process, exit, report) = spawn(&helper, &plan, &console, owner::mark(host, id))?;
    let (ended, files_left) = (process.clone(), files.clone());
    undo.push(format!("VMM {}", process.pid), move || {
        ended.end(Duration::ZERO).map_err(|source| Error::Io {
            what: "end",
            path: format!("/proc/{}", ended.pid).into(),
            source,
        })?;
        Ok(files_left.remove_sockets()?)
    });
    let mut failed = |error: Error| explain(error, &process, &exit, &console);
    running(report).map_err(&mut failed)?;
    let api = ready(&files.socket(), &watch, &process).map_err(&mut failed)?;
    Ok(Started { driver, api, process, exit, files, console })
}

impl Started {
    /// Does `work` with the VMM; where it fails because the VMM died, says how, with the last lines of its log.
    pub fn with<T>(
        &mut self,
        work: impl FnOnce(&dyn Driver, &mut Api) -> Result<T, Error>,
    ) -> Result<T, wire::Error> {
        work(self.driver, &mut self.api)
            .map_err(|error| explain(error, &self.process, &self.exit, &self.console))
    }

    /// The VMM's root directory as we reach it: what is below its /tmp goes when it does.
    pub fn root(&self) -> PathBuf {
        format!("/proc/{}/root", self.process.pid).into()
    }

    /// Takes a file out of the VMM's sight. (The kernel lets a file go that is a mount point only elsewhere, and ends
    /// the mount.)
    pub fn take_away(&mut self, path: &Path) -> Result<(), wire::Error> {
        let ours = self.root().join(path.strip_prefix("/").unwrap_or(path));
        let (process, doing) = (self.process.clone(), "go on");
        self.with(|_, _| {
            remove(&ours).map_err(|error| match process.is_alive() {
                true => Error::io("take away", ours)(error),
                false => Error::Died { doing: doing.into(), status: None },
            })
        })
    }

    /// The document's section for it. Its root disk is in `workdir`; its memory changes from `base` on.
    pub fn section(
        &mut self,
        state: State,
        base: &Base,
        workdir: &Path,
        undo: &mut Undo,
    ) -> Result<Value, wire::Error> {
        let files = self.files.clone();
        files.write_base(base)?;
        undo.push("base of the dirty log", move || Ok(files.forget_base()?));
        let version = self.with(|driver, api| driver.version(api))?;
        let path = |path: &Path| Value::from(path.to_string_lossy());
        let mut vm = Map::new();
        vm.insert("vmm".into(), self.driver.name().into());
        vm.insert("version".into(), version.into());
        vm.extend(process_fields(&self.process).map(|(name, value)| (name.to_owned(), value)));
        vm.insert("api".into(), path(&self.files.socket()));
        vm.insert("workdir".into(), path(workdir));
        vm.insert("log".into(), path(&self.files.console()));
        vm.insert("state".into(), state.name().into());
        if let Base::Snapshot(dir) = base {
            vm.insert("base".into(), path(dir));
        }
        Ok(vm.into())
    }
}

/// The program of the child half: ours, when we are wrenn-launch; its sibling, when a supervisor calls this library.
fn helper() -> Result<PathBuf, Error> {
    const NAME: &str = "wrenn-launch";
    let me = std::env::current_exe().unwrap_or_default();
    if me.file_name().is_some_and(|name| name.to_string_lossy().split(' ').next() == Some(NAME)) {
        return Ok("/proc/self/exe".into());
    }
    driver::beside(NAME).or_else(|| driver::in_path(NAME)).ok_or_else(|| Error::NoHelper {
        beside: me.parent().unwrap_or(Path::new("/")).display().to_string(),
    })
}

fn check_kvm() -> Result<(), Error> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::NoKvm { source }),
    }
}

fn make_run_dir(files: &RunFiles, undo: &mut Undo) -> Result<(), Error> {
    let dir = files.dir().to_owned();
    fs::create_dir_all(dir.parent().unwrap_or(&dir)).map_err(Error::io("make", &dir))?;
    match DirBuilder::new().mode(0o700).create(&dir) {
        Ok(()) => {
            let files = files.clone();
            undo.push(format!("directory {}", dir.display()), move || Ok(files.remove_dir_if_empty()?));
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Io { what: "make", path: dir, source }),
    }
}

fn watch(dir: &Path) -> Result<Inotify, Error> {
    let watch = || {
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        watch.add_watch(dir, AddWatchFlags::IN_CREATE)?;
        Ok(watch)
    };
    watch().map_err(|errno: Errno| Error::Io { what: "watch", path: dir.into(), source: errno.into() })
}

/// Starts the child half. Returns the process, where its exit status will arrive, and the pipe it reports on.
fn spawn(
    helper: &Path,
    plan: &Plan,
    console: &Console,
    mark: String,
) -> Result<(Process, Receiver<ExitStatus>, File), Error> {
    let failed = |source| Error::Child { step: "start the VMM's process".into(), source };
    let (plan_read, mut plan_write) = io::pipe().map_err(failed)?;
    let (report_read, report_write) = io::pipe().map_err(failed)?;
    let mut command = Command::new(helper);
    command.arg(child::VERB).env_clear().env(owner::VARIABLE, mark);
    sys::detach::null_stdio(&mut command);
    command.stdout(console.handle().map_err(failed)?).stderr(console.handle().map_err(failed)?);
    let mut child =
        sys::detach::spawn(command, vec![plan_read.into(), report_write.into()]).map_err(failed)?;
    // A child that is gone or a zombie already has said why on its pipe; a process of some name is still needed.
    let pid = child.id() as i32;
    let process = Process::of_pid(pid)
        .or_else(|_| Ok(Process { pid, start_time: 0, boot_id: sys::process::boot_id()? }));
    let process = process.map_err(failed)?;
    let (sender, exit) = channel();
    // Whoever calls this library may live as long as the VM does: no zombie stays behind.
    let reaper = std::thread::Builder::new().name(format!("vmm {pid}")).stack_size(64 << 10);
    let spawned = reaper.spawn(move || child.wait().map(|status| sender.send(status)));
    // Less than a pipe holds. A child that died reads nothing, which its report explains.
    let _ = plan_write.write_all(plan.to_json().to_string().as_bytes());
    drop(plan_write);
    if let Err(source) = spawned {
        let _ = process.end(Duration::ZERO);
        return Err(failed(source));
    }
    Ok((process, exit, File::from(std::os::fd::OwnedFd::from(report_read))))
}

/// Waits until the child half has become the VMM: its pipe ends without a word.
fn running(mut report: File) -> Result<(), Error> {
    let step = || "start the VMM's process".to_owned();
    match sys::process::readable(&report, READY) {
        Ok(true) => {}
        Ok(false) => return Err(Error::Timeout { what: "start".into(), limit: READY }),
        Err(source) => return Err(Error::Child { step: step(), source }),
    }
    let mut text = String::new();
    report.read_to_string(&mut text).map_err(|source| Error::Child { step: step(), source })?;
    if text.is_empty() {
        return Ok(());
    }
    let report: Value = serde_json::from_str(&text).unwrap_or_default();
    let said = |name: &str| report.get(name).and_then(Value::as_str).unwrap_or(&text).to_owned();
    let source = match report.get("errno").and_then(Value::as_i64) {
        Some(errno) => io::Error::from_raw_os_error(errno as i32),
        None => io::Error::other(said("message")),
    };
    Err(Error::Child { step: said("step"), source })
}

/// Waits until the VMM answers on its socket.
fn ready(socket: &Path, watch: &Inotify, process: &Process) -> Result<Api, Error> {
    let doing = "open its API socket";
    let died = || Error::Died { doing: doing.into(), status: None };
    let io = |source| Error::Io { what: "wait for", path: socket.into(), source };
    let pidfd = process.pidfd().map_err(io)?.ok_or_else(died)?;
    let deadline = Instant::now() + READY;
    loop {
        // Between the socket's bind, which the watch tells, and its listen, which nothing tells, connecting is refused.
        let limit = match Api::connect(socket) {
            Ok(api) => return Ok(api),
            Err(error) if error.kind() == io::ErrorKind::NotFound => READY,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Duration::from_millis(1),
            Err(error) => return Err(io(error)),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: doing.into(), limit: READY });
        }
        let timeout = PollTimeout::try_from(limit.min(left)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(watch.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(sys::signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) | Ok(0) => {}
            Err(errno) => return Err(io(errno.into())),
            Ok(_) if fds[0].any() == Some(true) => return Err(died()),
            Ok(_) if sys::signals::pending().is_some() => return Err(Error::Interrupted(doing.into())),
            Ok(_) => drop(watch.read_events()),
        }
    }
}

/// An error on its way out, with how the VMM ended and the last lines of its log where it did end.
fn explain(error: Error, process: &Process, exit: &Receiver<ExitStatus>, console: &Console) -> wire::Error {
    let Error::Died { doing, .. } = error else { return error.into() };
    // It has hung up or is a zombie already; its status follows at once.
    let status = exit.recv_timeout(Duration::from_secs(2)).ok().map(|status| status.to_string());
    log::info!("VMM {} ended: {status:?}", process.pid);
    let error = wire::Error::from(Error::Died { doing, status });
    console.tail().into_iter().fold(error, wire::Error::detail)
}
