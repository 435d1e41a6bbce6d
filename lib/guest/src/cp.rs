//! `wrenn-guest cp`: copy a file into the guest or out of it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ureq::SendBody;
use wire::{Call, Reply};

use crate::{Agent, Error};

/// What marks a path as one in the guest.
pub const GUEST: &str = "guest:";

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let agent = Agent::of(call.document)?;
    let fields = call.fields();
    let (from, to): (String, String) = (fields.need("from")?, fields.need("to")?);
    let user = match fields.find::<String>("user")? {
        Some(user) => Some(user),
        None => call.document.find("spec.user")?,
    };
    let bytes = match (from.strip_prefix(GUEST), to.strip_prefix(GUEST)) {
        (None, Some(to)) => upload(&agent, &absolute("from", &from)?, guest("to", to)?, user.as_deref())?,
        (Some(from), None) => download(&agent, guest("from", from)?, &absolute("to", &to)?, user.as_deref())?,
        _ => return Err(wire::Error::field("to", "exactly one of from and to must start with guest:")),
    };
    call.document.set("copied_bytes", bytes);
    Ok(Reply::Document)
}

fn absolute(field: &str, path: &str) -> Result<PathBuf, wire::Error> {
    std::path::absolute(path).map_err(|_| wire::Error::field(field, "must not be empty"))
}

fn guest<'a>(field: &str, path: &'a str) -> Result<&'a str, wire::Error> {
    if path.is_empty() { Err(wire::Error::field(field, "wants a path after guest:")) } else { Ok(path) }
}

/// Copies a host file into the guest. Gives its size in bytes.
///
/// # Errors
/// What the file or the agent says.
pub fn upload(agent: &Agent, from: &Path, to: &str, user: Option<&str>) -> Result<u64, Error> {
    let failed =
        |what: &'static str| move |source: io::Error| Error::File { path: from.into(), what, source };
    let file = File::open(from).map_err(failed("open"))?;
    let metadata = file.metadata().map_err(failed("read"))?;
    if metadata.is_dir() {
        return Err(failed("copy a directory; pack it first")(io::ErrorKind::IsADirectory.into()));
    }
    send(agent, file, to, user)
}

/// Makes a file in the guest of all that `from` gives. Gives its size in bytes.
///
/// # Errors
/// What the agent says; an error of `from` breaks the upload off.
pub fn send(
    agent: &Agent,
    from: impl Read + Send + 'static,
    to: &str,
    user: Option<&str>,
) -> Result<u64, Error> {
    let count = Arc::new(AtomicU64::new(0));
    let body = SendBody::from_owned_reader(Counted { inner: from, bytes: count.clone() });
    agent.stream("the upload", &query(to, user), user, "application/octet-stream", body)?;
    Ok(count.load(Ordering::Relaxed))
}

/// Opens a guest file. Gives its size in bytes, if the agent tells it, and its content, which ends in an error if the
/// agent goes away.
///
/// # Errors
/// What the agent says.
pub fn open(
    agent: &Agent,
    from: &str,
    user: Option<&str>,
) -> Result<(Option<u64>, impl Read + Send + use<>), Error> {
    let body = agent.download("the download", &query(from, user), user)?.into_body();
    Ok((body.content_length(), Download { content: body.into_reader(), _agent: agent.clone() }))
}

/// A guest file on its way. While it is read its VM is watched.
struct Download<R> {
    content: R,
    _agent: Agent,
}

impl<R: Read> Read for Download<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer)
    }
}

/// Copies a guest file to the host; it appears there whole or not at all. Gives its size in bytes.
///
/// # Errors
/// What the file or the agent says.
pub fn download(agent: &Agent, from: &str, to: &Path, user: Option<&str>) -> Result<u64, Error> {
    let name = Path::new(from).file_name().unwrap_or(from.as_ref());
    let to = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let mut partial = to.clone().into_os_string();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let failed = |what: &'static str| {
        let path = to.clone();
        move |source: io::Error| Error::File { path, what, source }
    };
    let (_, content) = open(agent, from, user)?;
    let file = File::create_new(&partial).map_err(failed("create"))?;
    let done = copy(content, file, &to)
        .map_err(|error| agent.explained(error))
        .and_then(|bytes| std::fs::rename(&partial, &to).map(|()| bytes).map_err(failed("rename")));
    if done.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    done
}

fn copy(mut from: impl Read, mut to: File, path: &Path) -> Result<u64, Error> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        let read = from.read(&mut buffer).map_err(|source| Error::Broken { what: "the download", source })?;
        if read == 0 {
            return Ok(total);
        }
        to.write_all(&buffer[..read]).map_err(|source| Error::File {
            path: path.into(),
            what: "write",
            source,
        })?;
        total += read as u64;
    }
}

fn query(path: &str, user: Option<&str>) -> String {
    let mut query = format!("/files?path={}", encode(path));
    if let Some(user) = user {
        query += &format!("&username={}", encode(user));
    }
    query
}

/// Percent-encodes everything but RFC 3986's unreserved characters and `/`.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                (byte as char).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// A reader that counts what was read.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_strange_letters_stays_one_parameter() {
        assert_eq!(query("/a b&c=ü", Some("u&v")), "/files?path=/a%20b%26c%3D%C3%BC&username=u%26v");
    }
}
