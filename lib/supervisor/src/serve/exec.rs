//! A verb that streams: its events as they come, one a line, as the command line prints them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;

use super::reply::{self, Body};
use super::work::{Told, Work};

/// The events, of which the first is there.
pub fn reply(first: Bytes, work: Work) -> Response<Body> {
    let lines = Lines { first: Some(first), work };
    reply::with(StatusCode::OK, reply::NDJSON, lines.boxed_unsync())
}

/// Dropped with the connection, it gives the work up.
struct Lines {
    first: Option<Bytes>,
    work: Work,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        match ready!(self.work.poll_next(context)) {
            Some(Told::Event(line)) => Poll::Ready(Some(Ok(Frame::data(line)))),
            // A verb that has told events ends with one.
            Some(Told::Document(..) | Told::Failed(..)) | None => Poll::Ready(None),
        }
    }
}
