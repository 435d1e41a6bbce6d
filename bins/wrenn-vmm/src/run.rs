//! The program's main loop: the API's socket and the machine's end.

use std::io;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::api::Server;
use crate::args::Args;
use crate::controller::{Controller, Ended};
use crate::logger::{self, Settings};
use crate::metrics;
use crate::output::Output;
use crate::seccomp;

/// Why the program could not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it is")]
pub enum Error {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: std::path::PathBuf, source: io::Error },
    #[error("cannot listen on {}: {source}", path.display())]
    Listen { path: std::path::PathBuf, source: io::Error },
    #[error("cannot prepare for seccomp filters: {0}")]
    Seccomp(io::Error),
    #[error("cannot wait for requests: {0}")]
    Poll(Errno),
}

/// Serves the API until the machine has ended, and says how it did. The machine is not taken apart: a vCPU that waits
/// for a page would be waited for. It ends with the program.
///
/// # Errors
/// What kept it from starting, or from going on.
pub fn run(args: &Args) -> Result<Ended, Error> {
    logger::start(&args.id);
    let open = |path: &std::path::PathBuf| {
        Output::open(path).map_err(|source| Error::Open { path: path.clone(), source })
    };
    logger::set(Settings {
        output: args.log_path.as_ref().map(open).transpose()?,
        level: args.level,
        show_level: Some(args.show_level),
        show_origin: Some(args.show_log_origin),
    });
    if let Some(path) = &args.metrics_path {
        metrics::write_to(open(path)?);
    }
    if args.seccomp {
        seccomp::enable().map_err(Error::Seccomp)?;
    }
    let path = &args.api_sock;
    let mut server = Server::bind(path).map_err(|source| Error::Listen { path: path.clone(), source })?;
    let mut controller = std::mem::ManuallyDrop::new(Controller::new(&args.id));
    log::info!("wrenn-vmm {} listens on {}", env!("CARGO_PKG_VERSION"), path.display());
    let ended = loop {
        if let Some(ended) = controller.ended() {
            break ended;
        }
        let ready = wait(&server, &controller).map_err(Error::Poll)?;
        server.serve(&ready, |request| controller.handle(request));
    };
    metrics::flush();
    Ok(ended)
}

/// Waits until there is something to do. Which of the server's descriptors have something to be read.
fn wait(server: &Server, controller: &Controller) -> Result<Vec<bool>, Errno> {
    let pollable = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds: Vec<_> = server.fds().map(pollable).collect();
    let count = fds.len();
    fds.extend(controller.events().map(pollable));
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => Ok(fds[..count].iter().map(|fd| fd.any() == Some(true)).collect()),
        Err(Errno::EINTR) => Ok(vec![false; count]),
        Err(errno) => Err(errno),
    }
}
