//! Errors as they travel: a kind that decides the exit status, a stable code, one line of message, the causes.

use std::fmt;
use std::io;

use serde_json::{Map, Value};

/// What class of failure it was. The same number in every tool (docs/contract.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A bug: please report.
    Internal,
    /// Usage, or a request that can never work.
    Invalid,
    /// A named thing does not exist.
    NotFound,
    /// Exists already, busy, or in the wrong state.
    Conflict,
    /// This host lacks a device, module, privilege or program.
    Unsupported,
    /// No space, no slot, CoW full, out of memory.
    Exhausted,
    /// Something did not answer in time.
    Timeout,
    /// The VMM or the guest agent answered with an error.
    Peer,
    /// Data on disk fails its checks.
    Corrupt,
}

impl Kind {
    const ALL: [Self; 9] = [
        Self::Internal,
        Self::Invalid,
        Self::NotFound,
        Self::Conflict,
        Self::Unsupported,
        Self::Exhausted,
        Self::Timeout,
        Self::Peer,
        Self::Corrupt,
    ];

    /// Exit status of a program whose first error is of this kind.
    pub fn status(self) -> u8 {
        self as u8 + 1
    }

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Exhausted => "exhausted",
            Self::Timeout => "timeout",
            Self::Peer => "peer",
            Self::Corrupt => "corrupt",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind an I/O error has where nothing more is known about it.
    pub fn of_io(error: &io::Error) -> Self {
        match error.raw_os_error().map(nix::errno::Errno::from_raw) {
            Some(errno) => Self::of_errno(errno),
            None => match error.kind() {
                io::ErrorKind::NotFound => Self::NotFound,
                io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Self::Timeout,
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Self::Corrupt,
                io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => Self::Invalid,
                _ => Self::Internal,
            },
        }
    }

    /// The kind an errno has where nothing more is known about it.
    pub fn of_errno(errno: nix::errno::Errno) -> Self {
        use nix::errno::Errno as E;
        match errno {
            E::ENOENT | E::ENOTDIR | E::ESRCH | E::ENXIO | E::ENODEV => Self::NotFound,
            E::EEXIST | E::EBUSY | E::ENOTEMPTY | E::EADDRINUSE | E::ETXTBSY => Self::Conflict,
            E::EPERM | E::EACCES | E::ENOSYS | E::EOPNOTSUPP | E::ENOTTY | E::EROFS => Self::Unsupported,
            E::ENOSPC | E::EDQUOT | E::ENOMEM | E::EMFILE | E::ENFILE | E::EFBIG => Self::Exhausted,
            E::ETIMEDOUT | E::EINTR => Self::Timeout,
            E::ECONNREFUSED | E::ECONNRESET | E::EPIPE => Self::Peer,
            E::EINVAL | E::EISDIR | E::ENAMETOOLONG | E::ELOOP => Self::Invalid,
            _ => Self::Internal,
        }
    }
}

/// What a library's error enum tells about each of its variants. Its `Display` is the message, its `source` chain
/// the detail.
pub trait Fault: std::error::Error + 'static {
    /// The class of failure.
    fn kind(&self) -> Kind;
    /// Stable name of the failure, `tool.reason`.
    fn code(&self) -> &'static str;
    /// Whether the same request may work later without anybody changing anything.
    fn retry(&self) -> bool {
        false
    }
}

/// An error on its way to the reply.
#[derive(Debug, Clone)]
pub struct Error {
    /// The class of failure.
    pub kind: Kind,
    /// Stable name of the failure, `tool.reason`.
    pub code: String,
    /// One line for a person.
    pub message: String,
    /// Its cause, the cause of that, and what else failed while undoing.
    pub detail: Vec<String>,
    /// The kernel's number, if it was the kernel that refused.
    pub errno: Option<i32>,
    /// Whether the same request may work later.
    pub retry: bool,
    /// Tool and verb where it happened, when not the ones that report it.
    pub origin: Option<(String, String)>,
}

impl Error {
    /// An error without causes.
    pub fn new(kind: Kind, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: code.into(),
            message: one_line(&message.into()),
            detail: Vec::new(),
            errno: None,
            retry: false,
            origin: None,
        }
    }

    /// A request whose field is missing or wrong.
    pub fn field(name: &str, what: impl fmt::Display) -> Self {
        Self::new(Kind::Invalid, "wire.field", format!("{name}: {what}"))
    }

    /// The command line cannot be understood.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, "wire.usage", message)
    }

    /// The same error with one more cause.
    #[must_use]
    pub fn detail(mut self, cause: impl fmt::Display) -> Self {
        self.detail.push(one_line(&cause.to_string()));
        self
    }

    /// The same error with the kernel's number.
    #[must_use]
    pub fn errno(mut self, errno: i32) -> Self {
        self.errno = Some(errno);
        self
    }

    /// The same error, marked as worth another try.
    #[must_use]
    pub fn retry(mut self) -> Self {
        self.retry = true;
        self
    }

    /// Several failures of one teardown as one error: the first, with the others as its detail.
    pub fn all(errors: impl IntoIterator<Item = Error>) -> Result<(), Error> {
        let mut errors = errors.into_iter();
        match errors.next() {
            None => Ok(()),
            Some(first) => Err(errors.fold(first, |first, other| first.absorb(other))),
        }
    }

    /// The same error with another one, and its causes, in its detail.
    #[must_use]
    pub fn absorb(mut self, other: Error) -> Self {
        self.detail.push(other.message);
        self.detail.extend(other.detail);
        self
    }

    /// The `error` object of a reply.
    pub fn to_json(&self, tool: &str, verb: &str) -> Value {
        let (tool, verb) = match &self.origin {
            Some((tool, verb)) => (tool.as_str(), verb.as_str()),
            None => (tool, verb),
        };
        let mut map = Map::new();
        map.insert("tool".into(), tool.into());
        map.insert("verb".into(), verb.into());
        map.insert("kind".into(), self.kind.name().into());
        map.insert("code".into(), self.code.clone().into());
        map.insert("message".into(), self.message.clone().into());
        map.insert("detail".into(), self.detail.clone().into());
        if let Some(errno) = self.errno {
            map.insert("errno".into(), errno.into());
        }
        map.insert("retry".into(), self.retry.into());
        map.into()
    }

    /// Reads an `error` object back. What is missing or strange in it counts as `internal`.
    pub fn from_json(value: &Value) -> Self {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = Kind::from_name(&text("kind")).unwrap_or(Kind::Internal);
        let mut error = Self::new(kind, text("code"), text("message"));
        if let Some(detail) = value.get("detail").and_then(Value::as_array) {
            error.detail = detail.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        error.errno = value.get("errno").and_then(Value::as_i64).map(|errno| errno as i32);
        error.retry = value.get("retry").and_then(Value::as_bool).unwrap_or(false);
        error.origin = Some((text("tool"), text("verb")));
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.detail.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl<F: Fault> From<F> for Error {
    fn from(fault: F) -> Self {
        let mut error = Self::new(fault.kind(), fault.code(), fault.to_string());
        error.retry = fault.retry();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&fault);
        while let Some(current) = cause {
            error.errno = error.errno.or_else(|| errno_of(current));
            cause = current.source();
            error.detail.extend(cause.map(|cause| one_line(&cause.to_string())));
        }
        error
    }
}

fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => error.raw_os_error(),
        None => error.downcast_ref::<nix::errno::Errno>().map(|errno| *errno as i32),
    }
}

fn one_line(text: &str) -> String {
    text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open {path}")]
    struct Sample {
        path: String,
        source: io::Error,
    }

    impl Fault for Sample {
        fn kind(&self) -> Kind {
            Kind::of_io(&self.source)
        }
        fn code(&self) -> &'static str {
            "sample.open"
        }
    }

    #[test]
    fn the_statuses_are_those_of_the_contract() {
        let statuses: Vec<_> = Kind::ALL.map(|kind| (kind.status(), kind.name())).into();
        let expected = [
            (1, "internal"),
            (2, "invalid"),
            (3, "not_found"),
            (4, "conflict"),
            (5, "unsupported"),
            (6, "exhausted"),
            (7, "timeout"),
            (8, "peer"),
            (9, "corrupt"),
        ];
        assert_eq!(statuses, expected);
    }

    #[test]
    fn an_error_of_a_library_keeps_its_causes_and_errno() {
        let fault = Sample { path: "/x".into(), source: io::Error::from_raw_os_error(28) };
        let error = Error::from(fault);
        let json = error.to_json("wrenn-x", "do");
        assert_eq!(json["kind"], "exhausted");
        assert_eq!(json["errno"], 28);
        assert_eq!(json["message"], "cannot open /x");
        assert_eq!(json["detail"][0], "No space left on device (os error 28)");
        let back = Error::from_json(&json);
        assert_eq!(back.to_json("other", "verb"), json, "a passed-on error keeps where it came from");
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(Error::new(Kind::Peer, "x", "a\r\n b\n").message, "a; b");
    }
}
