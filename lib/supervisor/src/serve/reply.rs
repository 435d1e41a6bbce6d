//! Replies of one JSON value, and what status says what.

use std::io;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use wire::{Document, Error, Kind, Value};

use super::routes::Missing;

/// The body of any reply.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Lines of JSON.
pub const NDJSON: &str = "application/x-ndjson";
/// One JSON value.
pub const JSON: &str = "application/json";

/// The status of a failure of this kind.
pub fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Invalid => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        Kind::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Kind::Peer => StatusCode::BAD_GATEWAY,
        Kind::Internal | Kind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A reply with this body.
pub fn with(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// One JSON value.
pub fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let body = Full::new(line(value)).map_err(|never| match never {});
    with(status, JSON, body.boxed_unsync())
}

/// A value as a line.
pub fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// A failure before, or without, a document.
pub fn failed(error: &Error, verb: &str) -> Response<Body> {
    document(Document::new(), error, verb)
}

/// The request with what went wrong, as every program replies.
pub fn document(mut document: Document, error: &Error, verb: &str) -> Response<Body> {
    document.set("error", error.to_json("wrenn", verb));
    let status = match error.code.as_str() {
        TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        LATE => StatusCode::REQUEST_TIMEOUT,
        METHOD => StatusCode::METHOD_NOT_ALLOWED,
        _ => status_of(error.kind),
    };
    json(status, &document.into_value())
}

/// Codes of what HTTP has a status of its own for.
pub const TOO_LARGE: &str = "serve.too_large";
pub const LATE: &str = "serve.late";
pub const METHOD: &str = "serve.method";

/// No route answers.
pub fn missing(missing: &Missing, method: &str, path: &str) -> Response<Body> {
    let error = match missing {
        Missing::Path => Error::new(Kind::NotFound, "serve.path", format!("nothing is at {path}")),
        Missing::Segment => Error::field("path", format!("{path} does not decode to UTF-8")),
        Missing::Method(_) => Error::new(Kind::Invalid, METHOD, format!("{path} does not take {method}")),
    };
    let mut response = failed(&error, "serve");
    if let Missing::Method(methods) = missing
        && let Ok(value) = HeaderValue::from_str(&methods.join(", "))
    {
        response.headers_mut().insert(ALLOW, value);
    }
    response
}

/// A verb that panicked.
pub fn panicked(verb: &str) -> Response<Body> {
    failed(&Error::new(Kind::Internal, "serve.panic", "the verb ended without a reply"), verb)
}

/// Too many at once.
pub fn busy(verb: &str) -> Response<Body> {
    let message = format!("{} commands and file copies are at work", super::STREAMS);
    failed(&Error::new(Kind::Exhausted, "serve.busy", message).retry(), verb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_status_of_the_documentation() {
        let page = include_str!("../../../../docs/serve.md");
        for kind in [
            "internal",
            "invalid",
            "not_found",
            "conflict",
            "unsupported",
            "exhausted",
            "timeout",
            "peer",
            "corrupt",
        ] {
            let status = status_of(Kind::from_name(kind).unwrap()).as_u16();
            assert!(page.contains(&format!("| {status} | `{kind}`")), "{kind} is {status}");
        }
    }
}
