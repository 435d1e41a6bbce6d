//! One running process: its input, its listeners, its life.

use std::{io, os::fd::AsFd, sync::Arc, time::Instant};

use nix::sys::signal::Signal;
use tokio::{
    io::AsyncWriteExt as _,
    net::unix::pipe::Sender,
    sync::{Mutex, oneshot, watch},
};

use super::{
    Error, Processes,
    output::{Hub, Outlet},
    reaper::Status,
    terminal::{Size, resize},
};
use crate::proto::process::ProcessConfig;

/// A process the agent started.
pub struct Running {
    pub pid: u32,
    pub tag: Option<String>,
    /// What was asked for, for `List`.
    pub config: ProcessConfig,
    pub hub: Hub,
    pub input: Input,
    ended: watch::Sender<bool>,
}

/// Where a process's input goes.
pub enum Input {
    /// A pipe, until it is closed.
    Pipe(Mutex<Option<Sender>>),
    /// The agent's end of a terminal; the mutex keeps the order of input.
    Terminal(Mutex<Sender>),
    Nothing,
}

impl Running {
    pub fn new(pid: u32, tag: Option<String>, config: ProcessConfig, input: Input) -> Self {
        Self { pid, tag, config, hub: Hub::default(), input, ended: watch::Sender::new(false) }
    }

    /// Lives as long as the process and its output do. Everything the process had written reaches the listeners
    /// before its end does; output of children that outlive it is read on, so that they never block, and dropped.
    pub async fn watch(
        self: Arc<Self>,
        processes: Arc<Processes>,
        mut first: Outlet,
        mut second: Option<Outlet>,
        mut status: oneshot::Receiver<Status>,
        mut deadline: Option<Instant>,
    ) {
        let status = loop {
            let event = tokio::select! {
                event = first.next() => event,
                event = next_of(&mut second) => event,
                ended = &mut status => match ended {
                    Ok(status) => break status,
                    Err(_) => return, // the table is gone, and with it the agent
                },
                () = at(deadline) => {
                    deadline = None;
                    let _ = processes.lock().signal(self.pid, Signal::SIGKILL); // ended just now
                    None
                }
            };
            if let Some(event) = event {
                self.hub.publish(event).await;
            }
        };
        self.ended.send_replace(true);
        first.drain_to(&self.hub).await;
        if let Some(second) = &mut second {
            second.drain_to(&self.hub).await;
        }
        if let Input::Pipe(pipe) = &self.input {
            pipe.lock().await.take();
        }
        self.hub.end(status).await;
        while first.is_open() || second.as_ref().is_some_and(Outlet::is_open) {
            tokio::select! { _ = first.next() => (), _ = next_of(&mut second) => () }
        }
    }

    /// Writes all of `bytes` to the process's stdin, waiting as long as it does not read.
    ///
    /// # Errors
    /// When there is no pipe, or the process ends first.
    pub async fn write_stdin(&self, bytes: &[u8]) -> Result<(), Error> {
        match &self.input {
            Input::Pipe(pipe) => match &mut *pipe.lock().await {
                Some(pipe) => self.write(pipe, bytes).await,
                None => Err(Error::NoStdin(self.pid)),
            },
            Input::Terminal(_) => Err(Error::HasTerminal(self.pid)),
            Input::Nothing => Err(Error::NoStdin(self.pid)),
        }
    }

    /// Types `bytes` into the process's terminal.
    ///
    /// # Errors
    /// When there is none, or the process ends first.
    pub async fn write_pty(&self, bytes: &[u8]) -> Result<(), Error> {
        match &self.input {
            Input::Terminal(master) => self.write(&mut *master.lock().await, bytes).await,
            _ => Err(Error::NoTerminal(self.pid)),
        }
    }

    /// # Errors
    /// When the process has a terminal, whose input has no end but 0x04.
    pub async fn close_stdin(&self) -> Result<(), Error> {
        match &self.input {
            Input::Pipe(pipe) => drop(pipe.lock().await.take()),
            Input::Terminal(_) => return Err(Error::HasTerminal(self.pid)),
            Input::Nothing => return Err(Error::NoStdin(self.pid)),
        }
        Ok(())
    }

    /// # Errors
    /// When the process has no terminal.
    pub async fn resize(&self, size: Size) -> Result<(), Error> {
        match &self.input {
            Input::Terminal(master) => {
                resize(master.lock().await.as_fd(), size).map_err(Error::io("resizing the terminal"))
            }
            _ => Err(Error::NoTerminal(self.pid)),
        }
    }

    async fn write(&self, to: &mut Sender, bytes: &[u8]) -> Result<(), Error> {
        let mut ended = self.ended.subscribe();
        let written = tokio::select! {
            written = to.write_all(bytes) => written,
            _ = ended.wait_for(|ended| *ended) => return Err(Error::Ended(self.pid)),
        };
        written.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => Error::NoStdin(self.pid),
            _ => Error::Io { doing: "writing the input", source },
        })
    }
}

async fn next_of(outlet: &mut Option<Outlet>) -> Option<super::output::Event> {
    match outlet {
        Some(outlet) => outlet.next().await,
        None => std::future::pending().await,
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
