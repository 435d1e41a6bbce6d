//! One scenario from start to end: the image, the server, the VMM, and what became of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sys::process::Process;

use super::huge::Allowed;
use super::model::Model;
use super::processes;
use super::report::{Outcome, Report};
use super::scenario::{Ending, Scenario};
use super::server::{Server, ending};
use super::temporary::Temporary;
use crate::Error;
use crate::role::{VMM, program};

/// How long a VMM whose server has ended may take to say how it fares.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// How long a server that has lost its VMM is given to end before another VMM is tried.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Beyond the scenario's limit, at which the VMM itself gives up.
const SLACK: Duration = Duration::from_secs(5);

/// What all scenarios have in common.
pub(crate) struct Suite<'a> {
    /// The server's program and arguments.
    pub words: &'a [String],
    pub seed: u64,
    pub limit: Duration,
}

/// The files of one attempt.
struct Files {
    dir: Temporary,
    socket: PathBuf,
    memory: PathBuf,
    snapshot: PathBuf,
    /// The file that memory's content lies in.
    source: PathBuf,
}

/// What a VMM has said, or what became of it.
enum Heard {
    Passed,
    Failed(String),
    Skipped(String),
    /// It is the server's turn.
    Ready,
    /// It has ended; how, and by which signal.
    Died(String, Option<Signal>),
}

impl Suite<'_> {
    /// Plays a scenario. An error is not the server's: this host does not let us, or we were interrupted.
    pub fn attempt(&self, scenario: &'static Scenario) -> Result<Report, wire::Error> {
        let skipped =
            |why| Report { outcome: Outcome::Skipped(why), ms: 0.0, server: None, log: String::new() };
        let layout = &scenario.layout;
        let _huge = match layout.is_huge().then(|| Allowed::new(layout.mapped())).transpose() {
            Ok(allowed) => allowed,
            Err(why) => return Ok(skipped(why)),
        };
        let files = self.files(scenario)?;
        let started = Instant::now();
        let mut server = Server::start(&self.replaced(&files), &files.dir.path().join("log"))?;
        let mut note = None;
        let outcome = self.play(scenario, &files, &mut server, &mut note)?;
        let ms = wire::ms(started.elapsed());
        wire::check_interrupt()?;
        Ok(Report { outcome, ms, server: note, log: server.log() })
    }

    /// Makes the image.
    fn files(&self, scenario: &Scenario) -> Result<Files, wire::Error> {
        let dir = Temporary::new()?;
        let path = |name: &str| dir.path().join(name);
        let (memory, snapshot) = (path("memory"), path("snapshot"));
        let model = Model { seed: self.seed };
        let size = scenario.layout.image_bytes();
        File::create(&memory)
            .and_then(|file| model.write(&file, size))
            .map_err(Error::io("write", &memory))?;
        let mut source = memory.clone();
        if self.words.iter().any(|word| word.contains("{dir}")) {
            source = pack(&memory, &snapshot)?;
        }
        if scenario.cut {
            cut(&source).map_err(Error::io("cut short", &source))?;
        }
        Ok(Files { socket: path("uffd.sock"), memory, snapshot, source, dir })
    }

    /// The server's command line.
    fn replaced(&self, files: &Files) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let replace = |word: &String| {
            word.replace("{socket}", &text(&files.socket))
                .replace("{memory}", &text(&files.memory))
                .replace("{dir}", &text(&files.snapshot))
        };
        self.words.iter().map(replace).collect()
    }

    fn play(
        &self,
        scenario: &'static Scenario,
        files: &Files,
        server: &mut Server,
        note: &mut Option<String>,
    ) -> Result<Outcome, Error> {
        if !server.await_socket(&files.socket, self.limit).map_err(Error::io("watch", files.dir.path()))? {
            let ended = server.has_ended().map(ending);
            *note = ended.as_ref().map(|(how, _)| how.clone());
            return Ok(match ended {
                Some((_, false)) if scenario.ending == Ending::Stopped => Outcome::Passed,
                Some((how, _)) => {
                    Outcome::Failed(format!("the server {how} before it listened at {{socket}}"))
                }
                None => Outcome::Failed(format!("no socket within {} s", self.limit.as_secs_f64())),
            });
        }
        let mut vmm = Vmm::start(self, scenario.name, files, server)?;
        let heard = vmm.hear(server, self.limit + SLACK, AFTERWARDS)?;
        Ok(match (scenario.ending, heard) {
            (_, Heard::Skipped(why)) => Outcome::Skipped(why),
            (_, Heard::Failed(why)) => Outcome::Failed(why),
            (Ending::Played | Ending::Stopped, Heard::Passed) => Outcome::Passed,
            // Stopped, or an access that failed (SIGBUS).
            (Ending::Stopped, Heard::Died(how, Some(Signal::SIGKILL | Signal::SIGTERM | Signal::SIGBUS))) => {
                *note = Some(format!("the VMM was {how}"));
                Outcome::Passed
            }
            (Ending::Killed, Heard::Ready) => {
                vmm.kill();
                processes::go_on(&server.processes());
                self.let_go(files, server, note)?
            }
            (Ending::Killed | Ending::Refused, Heard::Ready | Heard::Died(..)) => {
                self.let_go(files, server, note)?
            }
            (_, Heard::Died(how, _)) => {
                // It may still be about to say why.
                let server = server.wait(AT_ONCE).map_err(Error::io("wait for", "the server"))?;
                *note = server.map(|status| ending(status).0);
                Outcome::Failed(format!("the VMM was {how}, and did not do that itself"))
            }
            (_, Heard::Passed | Heard::Ready) => Outcome::Failed("the VMM did not play its part".into()),
        })
    }

    /// The server has lost its VMM, or never had one: it must end, or take another one; without spinning or a crash.
    fn let_go(
        &self,
        files: &Files,
        server: &mut Server,
        note: &mut Option<String>,
    ) -> Result<Outcome, Error> {
        let failed = |error| Error::io("wait for", "the server")(error);
        let started = Instant::now();
        let before = processes::used(&server.processes());
        if let Some(status) = server.wait(AT_ONCE.min(self.limit / 4)).map_err(failed)? {
            return Ok(ended(status, note));
        }
        // Any VMM will do; this one looks at every byte.
        let mut next = Vmm::start(self, "content", files, server)?;
        let heard = next.hear(server, self.limit + SLACK, Duration::ZERO)?;
        let used = processes::used(&server.processes()).saturating_sub(before);
        if let Heard::Passed = heard {
            *note = Some("serves the next VMM".into());
            return Ok(Outcome::Passed);
        }
        if let Some(status) = server.wait(AT_ONCE).map_err(failed)? {
            return Ok(ended(status, note));
        }
        let seconds = started.elapsed().as_secs_f64();
        // Others may want the processor, too.
        let spins = match used > started.elapsed() / 10 {
            true => format!(", and spins: it used {} s of processor time", used.as_secs_f64()),
            false => String::new(),
        };
        let why = match heard {
            Heard::Failed(why) | Heard::Skipped(why) => why,
            Heard::Died(how, _) => format!("that was {how}"),
            Heard::Passed | Heard::Ready => "that did not play its part".into(),
        };
        Ok(Outcome::Failed(format!(
            "within {seconds:.1} s the server neither ended nor served another VMM{spins}; of that: {why}"
        )))
    }
}

/// A server that has ended, as it may.
fn ended(status: ExitStatus, note: &mut Option<String>) -> Outcome {
    let (how, crashed) = ending(status);
    *note = Some(how.clone());
    if crashed { Outcome::Failed(format!("the server {how}")) } else { Outcome::Passed }
}

/// Packs the image as a snapshot directory, and gives its diff file.
fn pack(memory: &Path, dir: &Path) -> Result<PathBuf, wire::Error> {
    use snap::pack::{Kind, Mode, Pack};
    let mut undo = wire::Undo::default();
    let request =
        Pack { mode: Mode::Copy, checksums: false, ..Pack::new(memory.to_owned(), dir, Kind::Full) };
    let packed = snap::pack::pack(&request, &mut undo)?;
    undo.commit();
    Ok(dir.join(format!("memfile.{}", packed.header.build)))
}

/// Cuts a file to half its length: the image's last page that is not zero is gone then.
pub(crate) fn cut(path: &Path) -> io::Result<()> {
    let length = fs::metadata(path)?.len();
    OpenOptions::new().write(true).open(path)?.set_len(length / 2 / 4096 * 4096)
}

/// The VMM's process.
struct Vmm {
    child: Child,
    process: Option<Process>,
    events: io::PipeReader,
    heard: Vec<u8>,
    /// Its end is the VMM's.
    _leash: io::PipeWriter,
}

impl Vmm {
    fn start(suite: &Suite, scenario: &str, files: &Files, server: &Server) -> Result<Self, Error> {
        let program = program()?;
        let failed = |source| Error::Io { doing: "start", path: program.clone(), source };
        let (events, writer) = io::pipe().map_err(failed)?;
        let (reader, leash) = io::pipe().map_err(failed)?;
        let orders = json!({"scenario": scenario, "socket": files.socket, "source": files.source, "seed": suite.seed,
                            "server": server.roots[0], "limit_ms": suite.limit.as_millis() as u64});
        let mut command = Command::new(&program);
        command.arg(VMM).arg(orders.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = sys::detach::spawn(command, vec![writer.into(), reader.into()]).map_err(failed)?;
        let process = Process::of_pid(child.id() as i32).ok();
        Ok(Self { child, process, events, heard: Vec::new(), _leash: leash })
    }

    /// Waits until it has something to say that matters: at most `limit`, and `afterwards` when its server has ended.
    fn hear(&mut self, server: &mut Server, limit: Duration, afterwards: Duration) -> Result<Heard, Error> {
        let failed = |error: io::Error| Error::io("hear", "the VMM")(error);
        let mut deadline = Instant::now() + limit;
        let mut gone = server.pidfd().map_err(failed)?;
        let mut abandoned = false;
        loop {
            while let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Value = serde_json::from_slice(&self.heard[..end]).unwrap_or_default();
                self.heard.drain(..=end);
                let text = |name: &str| line[name].as_str().map(str::to_owned);
                if let Some(pid) = line["server"].as_i64().filter(|&pid| pid > 0) {
                    server.roots.push(pid as i32);
                } else if let Some(why) = text("failed") {
                    return Ok(Heard::Failed(why));
                } else if let Some(why) = text("skipped") {
                    return Ok(Heard::Skipped(why));
                } else if line["passed"] == true {
                    return Ok(Heard::Passed);
                } else if line["ready"] == true {
                    return Ok(Heard::Ready);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || sys::signals::pending().is_some() {
                return Ok(Heard::Failed(self.overdue(server, abandoned)));
            }
            let mut fds = vec![PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            fds.extend(gone.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
            fds.extend(sys::signals::fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))
                .map_err(|errno| failed(errno.into()))?;
            let said = fds[0].any() == Some(true);
            let ended = gone.is_some() && fds[1].any() == Some(true);
            if said {
                let mut buffer = [0; 4096];
                match self.events.read(&mut buffer).map_err(failed)? {
                    0 => return Ok(self.how_it_ended()),
                    count => self.heard.extend_from_slice(&buffer[..count]),
                }
            }
            if ended {
                gone = None;
                if server.processes().is_empty() {
                    abandoned = true;
                    deadline = deadline.min(Instant::now() + afterwards);
                }
            }
        }
    }

    fn overdue(&self, server: &mut Server, abandoned: bool) -> String {
        match server.has_ended().filter(|_| abandoned).map(ending) {
            Some((how, _)) => format!("the server {how} and left its VMM waiting"),
            None => "the VMM said nothing".into(),
        }
    }

    fn how_it_ended(&self) -> Heard {
        if !matches!(self.process.as_ref().map(|process| process.wait(SLACK)), Some(Ok(true)) | None) {
            return Heard::Died("silent".into(), None);
        }
        // Looked at and not waited for: a server that kills its peer by pid must not meet another process.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(Pid::from_raw(self.child.id() as i32)), flags) {
            Ok(WaitStatus::Signaled(_, signal, _)) => Heard::Died(format!("ended by {signal}"), Some(signal)),
            Ok(WaitStatus::Exited(_, status)) => {
                Heard::Died(format!("ended with exit status: {status}"), None)
            }
            _ => Heard::Died("ended".into(), None),
        }
    }

    /// Ends it by SIGKILL. Its pid stays its own until the server has ended.
    fn kill(&mut self) {
        if let Some(process) = &self.process
            && let Err(error) = process.end(Duration::ZERO)
        {
            log::warn!("the VMM, pid {}, stays: {error}", process.pid);
        }
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
