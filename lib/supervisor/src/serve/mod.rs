//! `wrenn serve`: the supervisor's verbs as HTTP/1.1 and JSON on a Unix socket, so that a control plane drives a host
//! without a shell (docs/serve.md).
//!
//! It is a front on the table of verbs, as the command line is. Async stays in here: a verb works on a thread of its own.

mod answer;
mod connection;
mod events;
mod exec;
mod files;
mod openapi;
mod plain;
mod reply;
mod request;
mod routes;
mod stream;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sys::listener::{LONGEST_PATH, Listener};
use tokio::sync::{Semaphore, watch};
use wire::{Call, Error, Host, Kind, Reply, json};

use self::events::Feed;
use crate::notify::notify;

/// Verbs at work at once; the next one waits for its turn.
const VERBS: usize = 16;
/// Commands and file copies at once, beside the verbs: they last as long as they like. The next one is refused.
const STREAMS: usize = 64;
/// After a signal, how long what is at work may take to end. A boot or a pause that is given back takes seconds.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// What every request is answered from.
struct Server {
    host: Host,
    verbs: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    feed: Feed,
    /// Becomes true when the server is told to end.
    stopping: watch::Receiver<bool>,
}

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let path: PathBuf = match call.document.find("socket")? {
        Some(path) => path,
        None => call.host.run().join("agent.sock"),
    };
    let listener = listen(&path)?;
    let failed =
        |error: std::io::Error| Error::new(Kind::of_io(&error), "serve.start", "cannot serve").detail(error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // Room for what is still ending when the next one starts.
        .max_blocking_threads(2 * (VERBS + STREAMS))
        .build()
        .map_err(failed)?;
    let (stop, stopping) = watch::channel(false);
    let served = runtime.block_on(async {
        let server = Arc::new(Server {
            host: call.host.clone(),
            verbs: Arc::new(Semaphore::new(VERBS)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            feed: Feed::start(call.host)?,
            stopping,
        });
        call.emit("listening", json!({"socket": path.to_string_lossy()}))?;
        notify("READY=1");
        connection::serve(server, listener, stop, LAST_WORDS).await.map_err(failed)
    });
    // A verb whose client has gone may still be at work.
    runtime.shutdown_timeout(LAST_WORDS);
    served?;
    call.emit("closed", json!({}))?;
    Ok(Reply::Streamed(0))
}

fn listen(path: &Path) -> Result<Listener, Error> {
    let length = path.as_os_str().len();
    if length > LONGEST_PATH {
        let why =
            format!("{} has {length} bytes; a socket's path has at most {LONGEST_PATH}", path.display());
        return Err(Error::field("socket", why));
    }
    let failed = |error: std::io::Error| {
        let (kind, code, what) = match error.kind() {
            std::io::ErrorKind::AddrInUse => (Kind::Conflict, "serve.in_use", "somebody listens on"),
            std::io::ErrorKind::AlreadyExists => {
                (Kind::Conflict, "serve.not_a_socket", "there is no socket at")
            }
            _ => (Kind::of_io(&error), "serve.socket", "cannot listen on"),
        };
        Error::new(kind, code, format!("{what} {}", path.display())).detail(error)
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    Listener::bind(path).map_err(failed)
}
