//! The listener, who may connect, and how long a connection lasts.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sys::listener::Listener;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot, watch};

use super::stream::{Flushes, Stream};
use super::{Server, answer};
use crate::notify::notify;

/// Connections at once; the next one waits in the kernel's queue.
const CONNECTIONS: usize = 512;
/// How long a client may take to send a request's head, and between two requests.
const HEAD: Duration = Duration::from_secs(30);
/// The longest head, bytes.
const HEAD_BYTES: usize = 64 << 10;
/// The pause after a connection that could not be taken: the kernel does not tell when a descriptor is free again.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves until a signal asks to end, and then until all is answered, for at most `last_words`.
pub async fn serve(
    server: Arc<Server>,
    listener: Listener,
    stop: watch::Sender<bool>,
    last_words: Duration,
) -> io::Result<()> {
    let accepting = UnixListener::from_std(listener.socket.try_clone()?)?;
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::select! {
        done = accept(&server, &accepting, &free) => done?,
        done = signal() => done?,
    }
    drop((accepting, listener));
    log::info!("ending: no more connections");
    notify("STOPPING=1");
    let _ = stop.send(true);
    server.feed.close();
    // A connection that is over gives its place back.
    let ended = free.acquire_many(CONNECTIONS as u32);
    if tokio::time::timeout(last_words, ended).await.is_err() {
        log::warn!("some requests did not end in {last_words:?}");
    }
    Ok(())
}

/// Returns when SIGINT or SIGTERM has come, whatever thread has read it.
async fn signal() -> io::Result<()> {
    let (tell, told) = oneshot::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let fds = [sys::signals::fd(), sys::signals::seen_fd()].map(Option::into_iter);
        let fds: Vec<_> = fds.into_iter().flatten().collect();
        while sys::signals::pending().is_none() {
            if let Err(error) = sys::process::any_readable(&fds) {
                return tell.send(Err(error));
            }
        }
        tell.send(Ok(()))
    })?;
    told.await.unwrap_or(Ok(()))
}

async fn accept(server: &Arc<Server>, listener: &UnixListener, free: &Arc<Semaphore>) -> io::Result<()> {
    loop {
        let place = free.clone().acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that is gone already, or no descriptor left for it.
                log::warn!("accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        if let Err(why) = check_peer(&stream) {
            log::warn!("a connection is refused: {why}");
            continue;
        }
        let server = server.clone();
        tokio::spawn(async move {
            converse(server, stream).await;
            drop(place);
        });
    }
}

/// The socket's mode keeps others out; a descriptor that was handed on is told by who opened it.
fn check_peer(stream: &UnixStream) -> Result<(), String> {
    let peer = stream.peer_cred().map_err(|error| error.to_string())?;
    let (uid, own) = (peer.uid(), nix::unistd::geteuid().as_raw());
    if uid == 0 || uid == own { Ok(()) } else { Err(format!("uid {uid} is neither root nor {own}")) }
}

async fn converse(server: Arc<Server>, stream: UnixStream) {
    let flushes = Arc::new(Flushes::default());
    let io = TokioIo::new(Stream::new(stream, flushes.clone()));
    let mut stopping = server.stopping.clone();
    let service = service_fn(move |request| {
        let (server, flushes) = (server.clone(), flushes.clone());
        async move { Ok::<_, Infallible>(answer::answer(server, flushes, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    let mut connection = std::pin::pin!(http.serve_connection(io, service));
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = async { drop(stopping.wait_for(|stopping| *stopping).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        // Most often: the client has gone.
        log::debug!("a connection ended: {error}");
    }
}
