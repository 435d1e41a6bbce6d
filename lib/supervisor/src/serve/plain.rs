//! A verb's reply. Its work stays once the reply is with the kernel; a client that has gone by then has it undone.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use wire::Document;

use super::reply::{self, Body};
use super::routes::Route;
use super::stream::Flushes;
use super::work::Receipt;

/// The document, with the status of the route's success.
pub fn reply(route: &Route, document: Document, receipt: Receipt, flushes: Arc<Flushes>) -> Response<Body> {
    let status = StatusCode::from_u16(route.status).unwrap_or_default();
    let Receipt { delivered, settled } = receipt;
    let letter = Letter {
        text: Some(reply::line(&document.into_value())),
        handed_over: 0,
        flushes,
        delivered: Some(delivered),
        settled,
    };
    reply::with(status, reply::JSON, letter.boxed_unsync())
}

/// A body that knows when it has been written, and ends when the work is settled: who has read all of the reply can go on
/// with the sandbox.
struct Letter {
    text: Option<Bytes>,
    /// How many flushes there were before the text was.
    handed_over: u64,
    flushes: Arc<Flushes>,
    delivered: Option<oneshot::Sender<()>>,
    settled: oneshot::Receiver<()>,
}

impl http_body::Body for Letter {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(text) = self.text.take() {
            self.handed_over = self.flushes.count();
            return Poll::Ready(Some(Ok(Frame::data(text))));
        }
        if self.delivered.is_some() {
            ready!(self.flushes.poll_after(self.handed_over, context));
            let _ = self.delivered.take().map(|delivered| delivered.send(()));
        }
        let _ = ready!(Pin::new(&mut self.settled).poll(context));
        Poll::Ready(None)
    }
}
