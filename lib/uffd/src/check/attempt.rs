//! One scenario from start to end: the image, the server, the VMM, and what became of them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use super::child::{Heard, Vmm};
use super::huge::Allowed;
use super::model::Model;
use super::processes;
use super::report::{Outcome, Report};
use super::scenario::{Ending, Scenario};
use super::server::{Server, ending};
use super::temporary::Temporary;
use crate::Error;

/// How long a VMM whose server has ended may take to say how it fares.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// How long a server that has lost its VMM is given to end before another VMM is tried.
const AT_ONCE: Duration = Duration::from_secs(1);

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

    /// Starts a VMM that plays this scenario.
    fn vmm(&self, scenario: &str, files: &Files, server: &Server) -> Result<Vmm, Error> {
        Vmm::start(
            &json!({"scenario": scenario, "socket": files.socket, "source": files.source, "seed": self.seed,
                           "server": server.roots[0], "limit_ms": self.limit.as_millis() as u64}),
        )
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
        let mut vmm = self.vmm(scenario.name, files, server)?;
        let heard = vmm.hear(server, self.limit, AFTERWARDS)?;
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
        let mut next = self.vmm("content", files, server)?;
        let heard = next.hear(server, self.limit, Duration::ZERO)?;
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
