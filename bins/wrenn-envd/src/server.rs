//! The listener and the way from a request to what answers it. HTTP/1.1 and, by prior knowledge, HTTP/2.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use connectrpc::{CompressionPolicy, ConnectRpcService, Router};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use nix::errno::Errno;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tower::{ServiceExt as _, service_fn};

use crate::{
    agent::Agent,
    filesystem,
    http::{Body, Reply, auth, envs, files, health, init, metrics, preload, snapshot},
    log::say,
    process,
    proto::{filesystem::FilesystemExt as _, process::ProcessExt as _},
};

/// Connections at once; the next one waits in the kernel's queue.
const CONNECTIONS: usize = 512;
/// The pause after a connection that could not be taken.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How long a connection may take to send a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// What a stream of one HTTP/2 connection may have on its way to a client that does not read.
const SEND_BUFFER: usize = 256 * 1024;

/// Listens; a restarted agent may take its port again at once.
///
/// # Errors
/// As bind(2) and listen(2) say.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Serves until the listener fails.
///
/// # Errors
/// When the listener does, for another reason than a connection that is gone already.
pub async fn run(listener: TcpListener, agent: Arc<Agent>) -> io::Result<()> {
    let router = Arc::new(process::service::Service(agent.clone())).register(Router::new());
    let router = Arc::new(filesystem::Service(agent.clone())).register(router);
    // The client sits on the other end of a virtual cable: compressing costs more than it saves.
    let rpc = ConnectRpcService::new(router).with_compression_policy(CompressionPolicy::disabled());

    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = free.clone().acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => {
                // A connection that is gone already, or no descriptor left for it: the kernel does not tell when
                // there is one again.
                say!("accepting a connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (agent, rpc) = (agent.clone(), rpc.clone());
        tokio::spawn(async move {
            serve(stream, agent, rpc).await;
            drop(place);
        });
    }
}

/// Whether the listener itself is broken; accept(2) passes on errors of single connections too.
fn is_final(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EOPNOTSUPP))
}

async fn serve(stream: TcpStream, agent: Arc<Agent>, rpc: ConnectRpcService) {
    let _ = stream.set_nodelay(true); // slower without, no worse
    let service = service_fn(move |request| {
        let (agent, rpc) = (agent.clone(), rpc.clone());
        async move { Ok::<_, Infallible>(answer(request, &agent, rpc).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    server.http2().timer(TokioTimer::new()).max_send_buf_size(SEND_BUFFER);
    // A client that goes away in mid-request is its own affair.
    let _ = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
}

/// One request, to the one place that answers it.
async fn answer(request: Request<Incoming>, agent: &Arc<Agent>, rpc: ConnectRpcService) -> Response<Body> {
    let path = request.uri().path().to_owned();
    // Health tells nothing worth a token; `/init` checks its own, for it may bring the next one.
    if !matches!(path.as_str(), "/health" | "/init") && !auth::allowed(agent, request.headers()) {
        return auth::refusal();
    }
    if path.starts_with("/process.Process/") || path.starts_with("/filesystem.Filesystem/") {
        let Ok(response) = rpc.oneshot(request).await;
        return response.map(|body| body.map_err(|never| match never {}).boxed_unsync());
    }
    let reply = match (request.method(), path.as_str()) {
        (&Method::GET, "/health") => health::get(),
        (&Method::GET, "/metrics") => metrics::get(agent),
        (&Method::GET, "/envs") => envs::get(agent),
        (&Method::POST, "/init") => init::post(agent, request).await,
        (&Method::GET, "/memory/preload") => preload::get(agent),
        (&Method::POST, "/memory/preload") => preload::post(agent),
        (&Method::GET, "/files") => files::download::get(agent, &request).await,
        (&Method::POST, "/files") => files::upload::post(agent, request).await,
        (&Method::POST, "/snapshot/prepare") => snapshot::prepare().await,
        (
            method,
            "/health" | "/metrics" | "/envs" | "/init" | "/memory/preload" | "/files" | "/snapshot/prepare",
        ) => Err(Reply::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))),
        _ => Err(Reply::new(StatusCode::NOT_FOUND, format!("nothing is at {path}"))),
    };
    reply.unwrap_or_else(|error| {
        if error.status.is_server_error() {
            say!("{path}: {}", error.message);
        }
        error.into_response()
    })
}
