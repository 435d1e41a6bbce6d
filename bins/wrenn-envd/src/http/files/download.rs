//! `GET /files?path=…`: a file's bytes, read as they are sent.

use bytes::BytesMut;
use futures::stream;
use http::{
    HeaderValue, Request, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use nix::libc::O_NONBLOCK;
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncReadExt as _,
};

use super::{Body, Reply, Target, refusal};
use crate::agent::Agent;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

pub async fn get<B>(agent: &Agent, request: &Request<B>) -> Result<Response<Body>, Reply> {
    let target = Target::of(agent, request)?;
    let path = target.user.path(&target.path.ok_or_else(|| Reply::bad_request("path is missing"))?);
    // Non-blocking, so that a pipe without a writer is refused rather than waited for.
    let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).await;
    let file = opened.map_err(|error| refusal(&path, &error))?;
    let meta = file.metadata().await.map_err(|error| refusal(&path, &error))?;
    if !meta.is_file() {
        return Err(Reply::bad_request(format!("{}: not a regular file", path.display())));
    }
    // Files of /proc say they are empty and are not: those are sent to their end, in chunks.
    let length = Some(meta.len()).filter(|&length| length > 0);
    let body = StreamBody::new(stream::try_unfold((file, length.unwrap_or(u64::MAX)), next));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    Ok(response)
}

/// The next piece of the file and what is left to send. A file that grows meanwhile ends where it did.
async fn next((file, left): (File, u64)) -> std::io::Result<Option<(Frame<bytes::Bytes>, (File, u64))>> {
    let mut chunk = BytesMut::with_capacity(CHUNK);
    let mut limited = file.take(left);
    let read = limited.read_buf(&mut chunk).await?;
    let left = left.saturating_sub(read as u64);
    Ok((read > 0).then(|| (Frame::data(chunk.freeze()), (limited.into_inner(), left))))
}
