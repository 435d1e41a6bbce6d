//! The agent's plain HTTP requests, one file each; what they share is here.

pub mod auth;
pub mod envs;
pub mod files;
pub mod health;
pub mod init;
pub mod kcore;
pub mod metrics;
pub mod preload;
pub mod snapshot;

use std::io;

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use serde::Serialize;

/// The body of any response.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A refusal: a status and the line that says why, as `{"code", "message"}`.
#[derive(Debug, Serialize)]
pub struct Reply {
    #[serde(rename = "code", serialize_with = "code")]
    pub status: StatusCode,
    pub message: String,
}

fn code<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Reply {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn into_response(self) -> Response<Body> {
        json(self.status, &self)
    }
}

impl From<crate::agent::UnknownUser> for Reply {
    fn from(error: crate::agent::UnknownUser) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error.to_string())
    }
}

/// A response of one JSON value.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let (status, bytes) = match serde_json::to_vec(value) {
        Ok(bytes) => (status, bytes),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string().into_bytes()),
    };
    let mut response = Response::new(Full::from(bytes).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// 204: done, and nothing to say.
pub fn done() -> Response<Body> {
    let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
