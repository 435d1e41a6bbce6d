//! What a server is told: from the request, through its command line.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use snap::Image;
use wire::{Call, Document, Error};

use crate::workingset::{LONGEST_MS, WINDOW};
use crate::{Prefetch, socket};

/// Where the memory comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A snapshot directory.
    Dir(PathBuf),
    /// A raw memory file.
    Raw(PathBuf),
}

/// One server's orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub source: Source,
    pub paths: Paths,
    pub prefetch: Prefetch,
    /// How long to record a working set, if at all.
    pub record: Option<Duration>,
    /// Whether to compare what is stored with its checksums.
    pub verify: bool,
    /// Where to write down what happens.
    pub trace: Option<PathBuf>,
    /// How many VMMs to serve, one after another; 0: until it is stopped.
    pub clients: u64,
}

/// The server's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Where the VMM connects.
    pub socket: PathBuf,
    /// Where the verbs ask.
    pub control: PathBuf,
    /// The list of discarded ranges.
    pub removed: PathBuf,
    /// What a detached server has to say.
    pub log: PathBuf,
    /// Whether they lie in the sandbox's own directory.
    pub own: bool,
}

impl Paths {
    /// Those that a request names, else `<run>/<id>/uffd.*`, else beside the socket it names.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let fields = call.fields();
        let id = call.document.id()?;
        let named = |name: &str| fields.find::<PathBuf>(name);
        let dir = id.as_ref().map(|id| call.host.run_dir(id));
        let (socket, control) = match (named("socket")?, named("control")?, dir) {
            (Some(socket), Some(control), _) => (socket, control),
            (Some(socket), None, _) => (socket.clone(), socket.with_extension("ctl")),
            (None, Some(control), _) => (control.with_extension("sock"), control),
            (None, None, Some(dir)) => (dir.join("uffd.sock"), dir.join("uffd.ctl")),
            (None, None, None) => {
                return Err(Error::field(
                    "socket",
                    "missing, and there is no id whose directory it could be in",
                ));
            }
        };
        let own = id.as_ref().is_some_and(|id| control.parent() == Some(&call.host.run_dir(id)));
        let paths = Self {
            own,
            removed: control.with_extension("removed"),
            log: control.with_extension("log"),
            socket,
            control,
        };
        paths.check()?;
        Ok(paths)
    }

    /// Where the discards of this one of several VMMs are listed.
    pub fn removed_of(&self, pid: i32) -> PathBuf {
        self.removed.with_extension(format!("removed.{pid}"))
    }

    /// Removes all such lists: what one VM discarded says nothing about another.
    pub fn forget_lists(&self) -> Result<(), crate::Error> {
        let begins = format!("{}.", self.removed.file_name().unwrap_or_default().to_string_lossy());
        let is_list = |name: &str| {
            let pid = name.strip_prefix(&begins);
            pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let files = self.removed.parent().and_then(|dir| std::fs::read_dir(dir).ok());
        let files = files.into_iter().flatten().flatten();
        let lists = files.filter(|file| file.file_name().to_str().is_some_and(is_list));
        lists.map(|list| socket::remove(&list.path())).fold(Ok(()), Result::and)
    }

    fn check(&self) -> Result<(), Error> {
        socket::check("socket", &self.socket)?;
        socket::check("control", &self.control)?;
        let all = [&self.socket, &self.control, &self.removed, &self.log];
        match (1..all.len()).any(|index| all[..index].contains(&all[index])) {
            true => {
                Err(Error::field("control", "shares its name with the socket, or ends in .removed or .log"))
            }
            false => Ok(()),
        }
    }
}

impl Source {
    fn of(call: &Call) -> Result<Self, Error> {
        let find = |path: &str| call.document.find::<PathBuf>(path);
        let one = |dir: Option<PathBuf>, raw: Option<PathBuf>, name: &str| match (dir, raw) {
            (Some(_), Some(_)) => Err(Error::field(name, "names both dir and raw; wants one")),
            (Some(dir), None) => Ok(Some(Self::Dir(dir))),
            (None, Some(raw)) => Ok(Some(Self::Raw(raw))),
            (None, None) => Ok(None),
        };
        if let Some(source) = one(find("uffd.source.dir")?, find("uffd.source.raw")?, "uffd.source")? {
            return Ok(source);
        }
        if let Some(dir) = find("snapshot.dir")? {
            return Ok(Self::Dir(dir));
        }
        one(find("source.dir")?, find("source.raw")?, "source")?
            .ok_or_else(|| Error::field("source", "missing; wants source.dir, source.raw or snapshot.dir"))
    }

    /// Whether it is there and whole. Gives which image it is, see [`Source::is`].
    pub fn check(&self) -> Result<String, crate::Error> {
        match self {
            Self::Dir(dir) => {
                let header = snap::directory::read_header(dir)?;
                snap::directory::open_diffs(dir, &header)?;
                Ok(header.build.to_string())
            }
            Self::Raw(file) => {
                drop(Image::open_raw(file)?);
                inode(file)
            }
        }
    }

    /// Whether what was opened is still that image, though another one may have its name by now.
    pub fn is(&self, which: &str, image: &Image) -> Result<bool, crate::Error> {
        match (self, image.build()) {
            (Self::Raw(file), _) => Ok(inode(file)? == which),
            (Self::Dir(_), build) => Ok(build.is_some_and(|build| build.to_string() == which)),
        }
    }

    /// Opens it, with its checksums if it is to be compared with them.
    pub fn open(&self, verify: bool) -> Result<Image, crate::Error> {
        Ok(match self {
            Self::Dir(dir) if verify => Image::open_checked(dir)?,
            Self::Dir(dir) => Image::open(dir)?,
            Self::Raw(file) => Image::open_raw(file)?,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        let (Self::Dir(path) | Self::Raw(path)) = self;
        path
    }

    /// The snapshot directory, if it is one.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Self::Dir(dir) => Some(dir),
            Self::Raw(_) => None,
        }
    }
}

impl Config {
    /// Whether more VMMs are wanted than so many.
    pub fn wants_more_than(&self, vmms: u64) -> bool {
        self.clients == 0 || vmms < self.clients
    }

    /// What a request orders. Nothing is touched.
    pub fn of(call: &Call) -> Result<Self, Error> {
        let fields = call.fields();
        let prefetch = match fields.find::<String>("prefetch")? {
            None => Prefetch::All,
            Some(word) => Prefetch::from_word(&word).ok_or_else(|| {
                Error::field(
                    "prefetch",
                    format!("must be one of {}, not {word:?}", Prefetch::WORDS.join(", ")),
                )
            })?,
        };
        let config = Self {
            source: Source::of(call)?,
            paths: Paths::of(call)?,
            prefetch,
            record: record(call)?,
            verify: fields.find("verify")?.unwrap_or(false),
            trace: fields.find("trace")?,
            clients: fields.find("clients")?.unwrap_or(1),
        };
        match config.source.dir() {
            None if config.record.is_some() => Err(Error::field(
                "record",
                "a recording belongs into a snapshot directory; the source is raw",
            )),
            None if config.verify => {
                Err(Error::field("verify", "a snapshot directory has checksums; the source is raw"))
            }
            _ => Ok(config),
        }
    }

    /// As one word of a command line.
    pub fn to_json(&self) -> Value {
        let source = match &self.source {
            Source::Dir(dir) => json!({ "dir": dir }),
            Source::Raw(raw) => json!({ "raw": raw }),
        };
        let Paths { socket, control, removed, log, own } = &self.paths;
        json!({"source": source, "socket": socket, "control": control, "removed": removed, "log": log,
               "own": own, "prefetch": self.prefetch.word(), "record_ms": self.record.map(|window| window.as_millis() as u64),
               "verify": self.verify, "trace": self.trace, "clients": self.clients})
    }

    /// From that word.
    pub fn from_json(word: &str) -> Result<Self, Error> {
        let value = serde_json::from_str(word).map_err(|error| Error::usage(error.to_string()))?;
        let document = Document::from_value(value)?;
        let source = match document.find("source.dir")? {
            Some(dir) => Source::Dir(dir),
            None => Source::Raw(document.need("source.raw")?),
        };
        let paths = Paths {
            socket: document.need("socket")?,
            control: document.need("control")?,
            removed: document.need("removed")?,
            log: document.need("log")?,
            own: document.need("own")?,
        };
        let word: String = document.need("prefetch")?;
        let prefetch = Prefetch::from_word(&word).ok_or_else(|| Error::field("prefetch", &word))?;
        let has = |name: &str| document.get(name).is_some_and(|value| !value.is_null());
        let trace = has("trace").then(|| document.need("trace")).transpose()?;
        let record = has("record_ms").then(|| document.need("record_ms")).transpose()?;
        let record = record.map(Duration::from_millis);
        let (verify, clients) = (document.need("verify")?, document.need("clients")?);
        Ok(Self { source, paths, prefetch, record, verify, trace, clients })
    }
}

fn inode(file: &Path) -> Result<String, crate::Error> {
    let meta = file.metadata().map_err(crate::Error::io("look at", file))?;
    Ok(format!("{}:{}", meta.dev(), meta.ino()))
}

/// How long to record, if that is wanted.
fn record(call: &Call) -> Result<Option<Duration>, Error> {
    let fields = call.fields();
    let wanted = fields.find("record")?.unwrap_or(false);
    let window = match fields.find("record_ms")? {
        None => WINDOW,
        Some(_) if !wanted => return Err(Error::field("record_ms", "means nothing without record:=true")),
        Some(ms) if (1..=LONGEST_MS).contains(&ms) => Duration::from_millis(ms),
        Some(ms) => {
            return Err(Error::field("record_ms", format!("must be 1 to {LONGEST_MS}, not {ms}")));
        }
    };
    Ok(wanted.then_some(window))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        for source in [Source::Dir("/a b/\"c".into()), Source::Raw("/r".into())] {
            let control = PathBuf::from("/run/x/uffd.ctl");
            let paths = Paths {
                socket: "/run/x/uffd.sock".into(),
                removed: control.with_extension("removed"),
                log: control.with_extension("log"),
                control,
                own: true,
            };
            for (trace, ms) in [(None, None), (Some("/run/x/a trace".into()), Some(70))] {
                let (source, paths) = (source.clone(), paths.clone());
                let config = Config {
                    source,
                    paths,
                    prefetch: Prefetch::Recorded,
                    record: ms.map(Duration::from_millis),
                    verify: ms.is_some(),
                    trace,
                    clients: 3,
                };
                assert_eq!(Config::from_json(&config.to_json().to_string()).unwrap(), config);
            }
        }
    }
}
