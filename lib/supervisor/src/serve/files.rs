//! Files of a sandbox, as they come and without a stop on this host's disk.

use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use guest::Agent;
use http::header::CONTENT_LENGTH;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use wire::{Error, Host, Id, Kind, Options, json};

use super::Server;
use super::reply::{self, Body};
use super::request::{BODY_TIME, late};
use super::routes::Parameters;
use crate::exec::active;
use crate::meanwhile;

/// The verb that does the same on the command line.
const VERB: &str = "cp";
/// Pieces on their way.
const WAITING: usize = 4;
const PIECE: usize = 64 << 10;

/// A file in a sandbox.
struct Place {
    id: Id,
    path: String,
    user: Option<String>,
}

impl Place {
    fn of(parameters: &Parameters, query: Option<&str>) -> Result<Self, Error> {
        let id = parameters.iter().find(|(name, _)| *name == "id").map_or("", |(_, id)| id);
        let (mut path, mut user) = (None, None);
        for (name, text) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            match &*name {
                "path" => path = Some(text.into_owned()),
                "user" => user = Some(text.into_owned()),
                _ => return Err(Error::usage(format!("unknown query parameter {name}"))),
            }
        }
        let path = path.filter(|path| !path.is_empty());
        Ok(Self { id: Id::new(id)?, path: path.ok_or_else(|| Error::field("path", "missing"))?, user })
    }

    /// Asks the agent of the sandbox, which counts as used. Nothing is left to wait for when the VM goes meanwhile: that
    /// is the error then.
    fn ask<T>(
        &self,
        host: &Host,
        ask: impl FnOnce(&Agent, Option<&str>) -> Result<T, guest::Error>,
    ) -> Result<(T, Agent), Error> {
        let document = active(host, self.id.clone(), Options::default())?;
        let user = match &self.user {
            Some(user) => Some(user.clone()),
            None => document.find("spec.user")?,
        };
        let agent = Agent::of(&document)?;
        match ask(&agent, user.as_deref()) {
            Ok(answer) => Ok((answer, agent)),
            Err(error) => Err(meanwhile::explain(host, &document, error.into())),
        }
    }
}

/// A file of the guest as the reply.
pub async fn read(
    server: &Arc<Server>,
    parameters: &Parameters,
    request: &Request<Incoming>,
) -> Response<Body> {
    let from = match Place::of(parameters, request.uri().query()) {
        Ok(from) => from,
        Err(error) => return reply::failed(&error, VERB),
    };
    let Ok(place) = server.streams.clone().try_acquire_owned() else { return reply::busy(VERB) };
    let (head, opened) = oneshot::channel();
    let (tell, pieces) = mpsc::channel(WAITING);
    let server = server.clone();
    tokio::task::spawn_blocking(move || {
        match from.ask(&server.host, |agent, user| guest::cp::open(agent, &from.path, user)) {
            // With the agent goes who cuts its connections when the VM goes.
            Ok(((length, content), _agent)) => {
                if head.send(Ok(length)).is_ok() {
                    pass_on(content, &tell);
                }
            }
            Err(error) => drop(head.send(Err(error))),
        }
        drop(place);
    });
    match opened.await {
        Ok(Ok(length)) => {
            let body = Pieces(pieces).boxed_unsync();
            let mut response = reply::with(StatusCode::OK, "application/octet-stream", body);
            if let Some(length) = length {
                response.headers_mut().insert(CONTENT_LENGTH, length.into());
            }
            response
        }
        Ok(Err(error)) => reply::failed(&error, VERB),
        Err(_) => reply::panicked(VERB),
    }
}

fn pass_on(mut content: impl Read, tell: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let read = match wire::check_interrupt() {
            Ok(()) => content.read(&mut buffer),
            Err(interrupted) => Err(io::Error::other(interrupted.message)),
        };
        let piece = match read {
            Ok(0) => return,
            Ok(count) => Ok(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) => Err(error),
        };
        let last = piece.is_err();
        if tell.blocking_send(piece).is_err() || last {
            return;
        }
    }
}

/// A body of pieces. An error breaks the connection off: the client sees that the file is not whole.
struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(ready!(self.0.poll_recv(context)).map(|piece| piece.map(Frame::data)))
    }
}

/// The request's body as a file of the guest.
pub async fn write(
    server: &Arc<Server>,
    parameters: &Parameters,
    request: Request<Incoming>,
) -> Response<Body> {
    let to = match Place::of(parameters, request.uri().query()) {
        Ok(to) => to,
        Err(error) => return reply::failed(&error, VERB),
    };
    let Ok(place) = server.streams.clone().try_acquire_owned() else { return reply::busy(VERB) };
    let (tell, pieces) = mpsc::channel(WAITING);
    let server = server.clone();
    let work = tokio::task::spawn_blocking(move || {
        let content = Content { pieces, piece: Bytes::new(), ended: false };
        let (bytes, _) =
            to.ask(&server.host, |agent, user| guest::cp::send(agent, content, &to.path, user))?;
        drop(place);
        Ok::<_, Error>(json!({"id": to.id.as_str(), "path": to.path, "copied_bytes": bytes}))
    });
    let forwarded = forward(request.into_body(), tell).await;
    match (work.await, forwarded) {
        (Err(_), _) => reply::panicked(VERB),
        (Ok(_), Err(error)) | (Ok(Err(error)), Ok(())) => reply::failed(&error, VERB),
        (Ok(Ok(done)), Ok(())) => reply::json(StatusCode::OK, &done),
    }
}

/// Hands the body on, piece by piece, `None` as its end: one that just stops has broken off.
async fn forward(mut body: Incoming, tell: mpsc::Sender<Option<Bytes>>) -> Result<(), Error> {
    loop {
        let piece = match tokio::time::timeout(BODY_TIME, body.frame()).await {
            Err(_) => return Err(late()),
            Ok(Some(Err(error))) => {
                return Err(Error::new(Kind::Peer, "serve.request", "the request broke off").detail(error));
            }
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Some(data),
                Err(_trailers) => continue,
            },
            Ok(None) => None,
        };
        let last = piece.is_none();
        // Nobody takes it: the upload has failed, and says why itself.
        if tell.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}

/// The request's body as a file to read.
struct Content {
    pieces: mpsc::Receiver<Option<Bytes>>,
    piece: Bytes,
    ended: bool,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.piece = piece,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
