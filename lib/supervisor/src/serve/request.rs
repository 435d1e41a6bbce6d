//! A verb's request: the body, with what the query and the path say on top.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use wire::{Document, Error, Field, Kind, Options, Type, Verb};

use super::reply::{LATE, TOO_LARGE};
use super::routes::{Answer, Parameters, Route};

/// The longest body of a verb's request, bytes.
pub const BODY_BYTES: usize = 1 << 20;
/// How long a client may take to send it.
pub const BODY_TIME: Duration = Duration::from_secs(30);

/// What a verb is asked.
#[derive(Debug)]
pub struct Asked {
    pub document: Document,
    pub options: Options,
}

/// The whole body.
pub async fn body(body: Incoming) -> Result<Bytes, Error> {
    let collected = tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_BYTES).collect()).await;
    match collected.map_err(|_| late())? {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("a request has at most {BODY_BYTES} bytes");
            Err(Error::new(Kind::Invalid, TOO_LARGE, message))
        }
        Err(error) => Err(Error::new(Kind::Peer, "serve.request", "the request broke off").detail(error)),
    }
}

/// A client that does not go on.
pub fn late() -> Error {
    let message = format!("the request's body did not come within {} s", BODY_TIME.as_secs());
    Error::new(Kind::Timeout, LATE, message).retry()
}

/// The request of a verb.
pub fn build(
    route: &Route,
    verb: &Verb,
    parameters: &Parameters,
    query: &str,
    body: &[u8],
) -> Result<Asked, Error> {
    let mut document = Document::new();
    if !body.iter().all(u8::is_ascii_whitespace) {
        let text = std::str::from_utf8(body).map_err(|error| {
            Error::new(Kind::Invalid, "wire.not_json", "the request is not UTF-8").detail(error)
        })?;
        document = Document::parse(text)?;
    }
    let mut options = Options::default();
    for (name, text) in form_urlencoded::parse(query.as_bytes()) {
        if name == "wait" {
            options.wait = seconds(&text)?;
            continue;
        }
        let Some(field) = flags(route, verb).find(|field| field.flag == Some(&*name)) else {
            return Err(Error::usage(format!("unknown query parameter {name}")));
        };
        let text = if field.kind == Type::Bool && text.is_empty() { "true" } else { &*text };
        let (path, value) = field.parse(&name, text)?;
        document.set(&path, value);
    }
    if let Some(field) = route.hidden.iter().find(|field| document.get(field).is_some()) {
        return Err(Error::field(field, "has no meaning here"));
    }
    for (name, text) in parameters {
        document.set(name, text.as_str());
    }
    for (name, text) in route.fixed {
        document.set(name, *text);
    }
    if route.answer == Answer::Stream {
        document.set("json", true);
    }
    Ok(Asked { document, options })
}

/// The fields that the query can fill: those with a flag, by its name.
pub fn flags<'a>(route: &'a Route, verb: &'a Verb) -> impl Iterator<Item = &'a Field> {
    verb.fields.iter().filter(|field| field.flag.is_some() && !route.hidden.contains(&field.name))
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| Error::usage(format!("wait takes seconds, not {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::routes;

    fn built(method: &str, target: &str, body: &str) -> Result<(String, Options), Error> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (route, parameters) = routes::find(method, path).unwrap();
        let verb = crate::TOOL.verb(route.verb).unwrap();
        let asked = build(route, verb, &parameters, query, body.as_bytes())?;
        Ok((asked.document.into_value().to_string(), asked.options))
    }

    #[test]
    fn the_path_and_the_query_go_on_top_of_the_body() {
        for (method, target, body, expected) in [
            ("POST", "/v1/sandboxes", "", "{}"),
            (
                "POST",
                "/v1/sandboxes?memory=256&metadata=a=b&metadata=c=d%20e",
                r#"{"id": "sb-1", "spec": {"vcpus": 1e0, "memory_mib": 1}}"#,
                r#"{"id":"sb-1","spec":{"vcpus":1e0,"memory_mib":256},"metadata":{"a":"b","c":"d e"}}"#,
            ),
            ("POST", "/v1/sandboxes/sb-1/pause", r#"{"id":"other"}"#, r#"{"id":"sb-1"}"#),
            ("GET", "/v1/snapshots/team/warm", "", r#"{"name":"team/warm","action":"get"}"#),
            (
                "POST",
                "/v1/sandboxes/sb-1/exec?timeout=1.5",
                r#"{"cmd":["true"]}"#,
                r#"{"cmd":["true"],"timeout_s":1.5,"id":"sb-1","json":true}"#,
            ),
        ] {
            assert_eq!(built(method, target, body).unwrap().0, expected, "{method} {target}");
        }
        assert_eq!(built("GET", "/v1/sandboxes/a?wait=0.5", "").unwrap().1.wait, Duration::from_millis(500));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_name() {
        for (target, body, mentions) in [
            ("/v1/sandboxes", "{", "not JSON"),
            ("/v1/sandboxes", "[]", "JSON object"),
            ("/v1/sandboxes?memory=x", "", "memory takes a whole number"),
            ("/v1/sandboxes?undo", "", "undo"),
            ("/v1/sandboxes?wait=-1", "", "wait takes seconds"),
            ("/v1/sandboxes/x/exec", r#"{"cmd":["a"],"stdin":true}"#, "stdin"),
            ("/v1/sandboxes/x/exec?stdin", r#"{"cmd":["a"]}"#, "stdin"),
        ] {
            let error = built("POST", target, body).unwrap_err();
            assert_eq!(error.kind, Kind::Invalid, "{target}");
            assert!(error.message.contains(mentions), "{target}: {}", error.message);
        }
    }
}
