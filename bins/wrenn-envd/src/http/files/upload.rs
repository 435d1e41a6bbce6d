//! `POST /files?path=…`: writes a file and the directories above it, for a user. The bytes are the body itself, or
//! the parts of a form: one part goes to `path`, several (or one without `path`) to the paths they name.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use nix::libc::O_NONBLOCK;
use serde::Serialize;
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt as _,
};

use super::{Body, Reply, Target, refusal};
use crate::{agent::Agent, filesystem::entry, users::User};

/// One file that was written.
#[derive(Serialize)]
struct Written {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    path: PathBuf,
}

pub async fn post(agent: &Agent, request: Request<Incoming>) -> Result<Response<Body>, Reply> {
    let target = Target::of(agent, &request)?;
    let (head, body) = request.into_parts();
    refuse_encoded(&head.headers)?;
    let content = body.into_data_stream();
    let form =
        head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(multer::parse_boundary);
    let written = match form {
        Some(Ok(boundary)) => parts(multer::Multipart::new(content, boundary), &target).await?,
        Some(Err(multer::Error::NoBoundary)) => {
            return Err(Reply::bad_request("multipart form without a boundary"));
        }
        _ => {
            let path = target.path.as_deref().ok_or_else(|| Reply::bad_request("path is missing"))?;
            vec![write(&target.user, path, content).await?]
        }
    };
    Ok(super::json(StatusCode::OK, &written))
}

async fn parts(mut form: multer::Multipart<'_>, target: &Target) -> Result<Vec<Written>, Reply> {
    let bad = |error: multer::Error| Reply::bad_request(format!("form: {error}"));
    let mut written: Vec<Written> = Vec::new();
    while let Some(part) = form.next_field().await.map_err(bad)? {
        let named = part.file_name().map(str::to_owned);
        let path = match (&target.path, named) {
            (Some(_), _) if !written.is_empty() => {
                return Err(Reply::bad_request("several files in the form, and one path in the query"));
            }
            (Some(path), _) => path.clone(),
            (None, Some(name)) if !name.is_empty() && !name.contains('\0') => name,
            (None, _) => {
                return Err(Reply::bad_request("a part of the form has no file name, and path is missing"));
            }
        };
        written.push(write(&target.user, &path, part).await?);
    }
    if written.is_empty() { Err(Reply::bad_request("the form holds no file")) } else { Ok(written) }
}

/// Writes one file piece by piece: no more than a piece is ever in memory.
async fn write<E: std::fmt::Display>(
    user: &User,
    path: &str,
    mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
) -> Result<Written, Reply> {
    let path = user.path(path);
    let refused = |error: io::Error| refusal(&path, &error);
    let mut file = create(user, &path).await.map_err(refused)?;
    loop {
        let piece = content.try_next().await;
        match piece.map_err(|error| Reply::bad_request(format!("the upload broke off: {error}")))? {
            Some(piece) => file.write_all(&piece).await.map_err(refused)?,
            None => break,
        }
    }
    // The last write runs behind `write_all`; its failure shows here.
    file.flush().await.map_err(refused)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Written { name, kind: "file", path })
}

async fn create(user: &User, path: &Path) -> io::Result<File> {
    let (owner, parent) = (user.clone(), path.parent().map(Path::to_owned));
    if let Some(parent) = parent {
        tokio::task::spawn_blocking(move || entry::make_directories(&parent, &owner)).await??;
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).custom_flags(O_NONBLOCK).open(path).await?;
    if !file.metadata().await?.is_file() {
        return Err(io::Error::from(nix::errno::Errno::ENXIO));
    }
    let file = file.into_std().await;
    entry::give(&file, user)?;
    Ok(File::from_std(file))
}

/// Compressed bodies would be stored as they are: better refused.
fn refuse_encoded(headers: &HeaderMap) -> Result<(), Reply> {
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let message = format!("Content-Encoding {} is not supported", encoding.to_str().unwrap_or("?"));
            Err(Reply::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
        }
        _ => Ok(()),
    }
}
