//! `/files`: whole files in and out, with `path` and `username` in the query.

pub mod download;
pub mod upload;

use std::{io, path::Path};

use http::StatusCode;
use nix::errno::Errno;

use super::{Body, Reply, auth, json};
use crate::{agent::Agent, users::User};

/// What a request to `/files` is about.
struct Target {
    /// As given; relative to the user's home.
    path: Option<String>,
    user: User,
}

impl Target {
    fn of<B>(agent: &Agent, request: &http::Request<B>) -> Result<Self, Reply> {
        let (mut path, mut name) = (None, auth::basic_user(request.headers()));
        for (key, value) in form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()) {
            match &*key {
                "path" => path = Some(value.into_owned()),
                "username" => name = Some(value.into_owned()).filter(|name| !name.is_empty()).or(name),
                _ => (),
            }
        }
        if path.as_deref().is_some_and(|path| path.is_empty() || path.contains('\0')) {
            return Err(Reply::bad_request("path is empty or holds a NUL byte"));
        }
        Ok(Self { path, user: agent.user(name.as_deref())? })
    }
}

/// What an error of the file system means to the client.
fn refusal(path: &Path, error: &io::Error) -> Reply {
    let status = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => StatusCode::NOT_FOUND,
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => StatusCode::FORBIDDEN,
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => StatusCode::INSUFFICIENT_STORAGE,
        Some(
            Errno::EISDIR
            | Errno::ENOTDIR
            | Errno::ENAMETOOLONG
            | Errno::ELOOP
            | Errno::ETXTBSY
            | Errno::ENXIO,
        ) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Reply::new(status, format!("{}: {error}", path.display()))
}
