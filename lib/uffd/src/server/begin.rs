//! How a server begins: on nothing, or where another one ended.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use snap::Image;
use sys::process::Process;
use sys::uffd::Uffd;

use super::Server;
use super::session::Common;
use crate::channel::Channel;
use crate::config::Config;
use crate::mail::{self, Mailbox};
use crate::note::note;
use crate::orders::{Given, Handed, Orders};
use crate::service::Service;
use crate::socket::{self, Listener};
use crate::state::State;
use crate::wait::{Rare, Waiter};
use crate::{Engine, Error, Region, area, trace};

/// Takes over what is given, opens the rest, and says so.
pub(super) fn begin(orders: Orders) -> Result<Server, ExitCode> {
    let Orders { config, name, image: which, restarts, came, given } = orders;
    let Given { channel, control, socket, vms } = given;
    let guardian = Channel::new(channel).map_err(|error| {
        note(format_args!("wrenn-uffd: no channel to the guardian: {error}"));
        ExitCode::FAILURE
    })?;
    let begun = (|| -> Result<_, Error> {
        let me = Process::current().map_err(Error::io("read", "/proc/self/stat"))?;
        let vms = vms.into_iter().map(|vm| Taken::of(vm, false)).collect::<Result<Vec<_>, _>>()?;
        let more_may_come = config.wants_more_than(came);
        let image = Arc::new(open(&config, &which, &vms, more_may_come)?);
        // That of a VM that is served already ends with the server before this one.
        let trace = config.trace.as_deref().filter(|_| came == 0);
        let trace = trace.map(trace::Writer::create).transpose()?;
        let control = Listener::inherited(control, &config.paths.control);
        let over = mail::mailbox().map_err(|source| Error::Events { source })?;
        let waiter = wait_for(&control, &guardian, &over.1).map_err(|source| Error::Events { source })?;
        if restarts == 0 {
            // What an earlier service saw discarded says nothing about this one's VM.
            socket::remove(&config.paths.removed)?;
            config.paths.forget_lists()?;
            guardian.tell("listening", json!({"bytes": image.size(), "server_pid": me.pid}));
        }
        let mut server = Server {
            common: Arc::new(Common { config, image, guardian: guardian.clone() }),
            name,
            me,
            image: which,
            restarts,
            came,
            warmed: false,
            trace,
            sessions: Vec::new(),
            over,
            control,
            socket: socket.map(UnixListener::from),
            connections: Vec::new(),
            asked: Vec::new(),
            syncs: 0,
            relief: None,
            orphaned: false,
            left_behind: Vec::new(),
            waiter,
        };
        vms.into_iter().try_for_each(|vm| server.begin(vm))?;
        if restarts > 0 {
            guardian.tell("ready", json!({}));
        }
        Ok(server)
    })();
    begun.map_err(|error| {
        let error = wire::Error::from(error);
        guardian.tell("failed", json!({"error": error.to_json("wrenn-uffd", "serve")}));
        ExitCode::from(error.kind.status())
    })
}

/// The image. VMs that have all of their memory need none, and it may be gone by now; others must not get zeros for it.
fn open(config: &Config, which: &str, vms: &[Taken], more_may_come: bool) -> Result<Image, Error> {
    let need_none = !more_may_come && vms.iter().all(Taken::is_complete);
    let opened =
        config.source.open(config.verify).and_then(|image| match config.source.is(which, &image)? {
            true => Ok(image),
            false => Err(Error::ImageReplaced { path: config.source.path().to_owned() }),
        });
    opened.or_else(|error| match need_none {
        true => Ok(Image::zeros(Region::end_of(vms.iter().flat_map(|vm| &vm.regions)))),
        false => Err(error),
    })
}

fn wait_for(control: &Listener, guardian: &Channel, over: &Mailbox<u64>) -> io::Result<Waiter> {
    let waiter = Waiter::new()?;
    waiter.add(&control.socket, Rare::Control)?;
    waiter.add(guardian, Rare::Guardian)?;
    waiter.add(over, Rare::Mail)?;
    if let Some(signals) = sys::signals::fd() {
        waiter.add(signals, Rare::Signal)?;
    }
    Ok(waiter)
}

/// A VM that this server is given: a new one, or one of the server before it.
pub(super) struct Taken {
    pub peer: Process,
    /// The how manieth of its service it is.
    pub client: u64,
    uffd: Uffd,
    state: State,
    regions: Vec<Region>,
    is_new: bool,
}

impl Taken {
    /// A new one.
    pub fn new(fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let mut fds = fds.into_iter();
        match (fds.next(), fds.next()) {
            (Some(uffd), Some(state)) => Self::of(Handed { uffd, state }, true),
            _ => Err(Error::Protocol { what: "a VM without its descriptors".into() }),
        }
    }

    fn of(handed: Handed, is_new: bool) -> Result<Self, Error> {
        let failed = |source| Error::State { source };
        let (state, regions) = State::open(handed.state).map_err(failed)?;
        let (peer, client) = (state.peer().map_err(failed)?, state.client());
        Ok(Self { peer, client, uffd: Uffd::from_fd(handed.uffd).map_err(failed)?, state, regions, is_new })
    }

    fn is_complete(&self) -> bool {
        area::missing(&self.regions, &self.state) == 0
    }

    /// Begins to serve it.
    pub fn begin(self, common: &Common, trace: Option<File>) -> Result<Service, Error> {
        let Common { config, image, guardian } = common;
        let Self { peer, client, uffd, state, regions, is_new } = self;
        let pid = peer.pid;
        let watched = peer.pidfd().map_err(Error::io("watch", format!("pid {pid}")))?;
        // Gone meanwhile: any descriptor that is readable says so.
        let exit = watched.map_or_else(ended, Ok).map_err(Error::io("watch", format!("pid {pid}")))?;
        let mut engine = Engine::resume(uffd, image.clone(), &regions, state)?;
        if let Some(file) = trace {
            engine.trace(file, pid);
        }
        // Which pages are asked for first was seen by the server before this one, as far as it has lived.
        let config = Config { record: config.record.filter(|_| is_new), ..config.clone() };
        let (service, warning) = Service::start(&config, engine, peer, exit);
        let ends = config.trace.filter(|_| client == 1 && !is_new);
        let ends = ends.map(|_| "the trace ends with the server before this one".to_owned());
        for message in warning.into_iter().chain(ends) {
            guardian.tell("warning", json!({ "message": message, "peer_pid": pid }));
        }
        Ok(service)
    }
}

/// The end of a pipe that nobody writes into.
fn ended() -> io::Result<OwnedFd> {
    Ok(io::pipe()?.0.into())
}
