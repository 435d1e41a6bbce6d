//! How a server begins: on nothing, or where another one ended.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::json;
use snap::Image;
use sys::process::Process;
use sys::uffd::Uffd;

use super::{Server, Vmm};
use crate::channel::Teller;
use crate::config::Config;
use crate::orders::{Given, Handed, Orders};
use crate::service::Service;
use crate::socket::{self, Listener};
use crate::state::State;
use crate::wait::{Rare, Waiter};
use crate::{Engine, Error, Region, trace};

/// Takes over what is given, opens the rest, and says so.
pub(super) fn begin(orders: Orders) -> Result<Server, ExitCode> {
    let Orders { config, name, restarts, came, given } = orders;
    let Given { channel, control, socket, vms } = given;
    let guardian = Teller::new(channel).map_err(|error| {
        eprintln!("{} wrenn-uffd: no channel to the guardian: {error}", wire::timestamp());
        ExitCode::FAILURE
    })?;
    let begun = (|| -> Result<_, Error> {
        let me = Process::current().map_err(Error::io("read", "/proc/self/stat"))?;
        let vm = vms.into_iter().next().map(Taken::of).transpose()?;
        let image = Arc::new(open(&config, vm.as_ref())?);
        // That of a VM that is served already ends with the server before this one.
        let trace = config.trace.as_deref().filter(|_| vm.is_none() && came == 0);
        let trace = trace.map(trace::Writer::create).transpose()?;
        let control = Listener::inherited(control, &config.paths.control);
        let listener = socket.map(|socket| Listener::inherited(socket, &config.paths.socket));
        let waiter = wait_for(&control, &guardian).map_err(|source| Error::Events { source })?;
        if restarts == 0 {
            // What an earlier service saw discarded says nothing about this one's VM.
            socket::remove(&config.paths.removed)?;
            guardian.tell("listening", json!({"bytes": image.size(), "server_pid": me.pid}));
        }
        let vmm = match vm {
            Some(vm) => Vmm::Served(Box::new(vm.serve(&config, &image, &waiter, &guardian)?)),
            None => Vmm::Awaited,
        };
        if restarts > 0 {
            guardian.tell("ready", json!({}));
        }
        Ok((me, image, trace, listener, vmm, control, waiter))
    })();
    match begun {
        Ok((me, image, trace, listener, vmm, control, waiter)) => Ok(Server {
            config,
            name,
            me,
            restarts,
            came,
            image,
            trace,
            listener,
            vmm,
            control,
            connections: Vec::new(),
            relief: None,
            guardian,
            orphaned: false,
            waiter,
        }),
        Err(error) => {
            let error = wire::Error::from(error);
            guardian.tell("failed", json!({"error": error.to_json("wrenn-uffd", "serve")}));
            Err(ExitCode::from(error.kind.status()))
        }
    }
}

/// The image. A VM that has all of its memory needs none, and it may be gone by now.
fn open(config: &Config, vm: Option<&Taken>) -> Result<Image, Error> {
    config.source.open(config.verify).or_else(|error| match vm.filter(|vm| vm.is_complete()) {
        Some(vm) => Ok(Image::zeros(vm.regions.iter().map(Region::offset_end).max().unwrap_or(0))),
        None => Err(error),
    })
}

fn wait_for(control: &Listener, guardian: &Teller) -> io::Result<Waiter> {
    let waiter = Waiter::new()?;
    waiter.add(&control.socket, Rare::Control)?;
    waiter.add(&guardian.0, Rare::Orphaned)?;
    if let Some(signals) = sys::signals::fd() {
        waiter.add(signals, Rare::Signal)?;
    }
    Ok(waiter)
}

/// A VM of the server before this one.
struct Taken {
    uffd: Uffd,
    state: State,
    regions: Vec<Region>,
}

impl Taken {
    fn of(handed: Handed) -> Result<Self, Error> {
        let failed = |source| Error::State { source };
        let (state, regions) = State::open(handed.state).map_err(failed)?;
        Ok(Self { uffd: Uffd::from_fd(handed.uffd).map_err(failed)?, state, regions })
    }

    fn is_complete(&self) -> bool {
        crate::area::all(&self.regions, &self.state).iter().all(|area| area.missing() == 0)
    }

    fn serve(
        self,
        config: &Config,
        image: &Arc<Image>,
        waiter: &Waiter,
        guardian: &Teller,
    ) -> Result<Service, Error> {
        let peer = self.state.peer().map_err(|source| Error::State { source })?;
        let watched = peer.pidfd().map_err(Error::io("watch", format!("pid {}", peer.pid)))?;
        // Gone meanwhile: any descriptor that is readable says so.
        let exit = watched.map_or_else(ended, Ok).map_err(Error::io("watch", format!("pid {}", peer.pid)))?;
        waiter.add(&exit, Rare::Exit).map_err(|source| Error::Events { source })?;
        let engine = Engine::resume(self.uffd, image.clone(), &self.regions, self.state)?;
        // Which pages are asked for first was seen by the server before this one, as far as it has lived.
        let config = Config { record: None, ..config.clone() };
        let (service, warning) = Service::start(&config, engine, peer, exit);
        let untraced = config.trace.map(|_| "the trace ends with the server before this one".to_owned());
        for message in warning.into_iter().chain(untraced) {
            guardian.tell("warning", json!({ "message": message }));
        }
        Ok(service)
    }
}

/// The end of a pipe that nobody writes into.
fn ended() -> io::Result<std::os::fd::OwnedFd> {
    Ok(io::pipe()?.0.into())
}
