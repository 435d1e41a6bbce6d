//! From a request to what answers it.

use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use wire::Error;

use super::reply::{self, Body};
use super::request::{self, Asked};
use super::routes::{self, Answer, Parameters, Route};
use super::stream::Flushes;
use super::{Server, events, exec, files, openapi, plain, work};

/// One request's answer.
pub async fn answer(
    server: Arc<Server>,
    flushes: Arc<Flushes>,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    let response = match routes::find(&method, &path) {
        Err(missing) => reply::missing(&missing, &method, &path),
        Ok((route, parameters)) => match route.answer {
            Answer::Verb | Answer::Stream => verb(&server, flushes, route, &parameters, request).await,
            Answer::Download => files::read(&server, &parameters, &request).await,
            Answer::Upload => files::write(&server, &parameters, request).await,
            Answer::Events => events::answer(&server),
            Answer::Description => reply::json(StatusCode::OK, &openapi::document()),
        },
    };
    log::info!("{method} {path}: {} after {} ms", response.status().as_u16(), started.elapsed().as_millis());
    response
}

async fn verb(
    server: &Arc<Server>,
    flushes: Arc<Flushes>,
    route: &'static Route,
    parameters: &Parameters,
    request: Request<Incoming>,
) -> Response<Body> {
    let asked = match asked(route, parameters, request).await {
        Ok(asked) => asked,
        Err(error) => return reply::failed(&error, route.verb),
    };
    // As in a pipe: what has failed already is passed on.
    if let Some(error) = asked.document.get("error").map(Error::from_json) {
        return reply::document(asked.document, &error, route.verb);
    }
    let place = match route.answer {
        Answer::Stream => server.streams.clone().try_acquire_owned().ok(),
        _ => server.verbs.clone().acquire_owned().await.ok(),
    };
    let Some(place) = place else { return reply::busy(route.verb) };
    let mut work = work::start(server, route, asked, place);
    match work.next().await {
        Some(work::Told::Document(document, receipt)) => plain::reply(route, document, receipt, flushes),
        Some(work::Told::Failed(document, error)) => reply::document(document, &error, route.verb),
        Some(work::Told::Event(first)) => exec::reply(first, work),
        None => reply::panicked(route.verb),
    }
}

async fn asked(
    route: &'static Route,
    parameters: &Parameters,
    request: Request<Incoming>,
) -> Result<Asked, Error> {
    let verb = crate::TOOL.verb(route.verb)?;
    let query = request.uri().query().unwrap_or_default().to_owned();
    let body = request::body(request.into_body()).await?;
    request::build(route, verb, parameters, &query, &body)
}
