//! What a process writes: read as it comes, and passed to whoever listens. Nothing is stored; a listener that is
//! slow slows the process down, as a pipe would.

use std::{
    future::pending,
    io,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};
use tokio::{io::AsyncReadExt as _, net::unix::pipe::Receiver, sync::mpsc};

use super::reaper::Status;

/// How much is read at once, and so the largest data event.
const CHUNK: usize = 32 * 1024;
/// How many events wait for a listener before the process has to.
const QUEUE: usize = 8;
/// How long a listener may take nothing before it is let go, so that it cannot hold the process for ever.
const STALL: Duration = Duration::from_secs(300);
/// What a terminal may still hold when its process ends (the kernel's limit is 640 KiB).
const TERMINAL_BUFFER: usize = 1 << 20;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stdout,
    Stderr,
    Pty,
}

/// What listeners hear.
#[derive(Clone, Debug)]
pub enum Event {
    Data(Kind, Bytes),
    End(Status),
}

/// The listeners of one process.
#[derive(Default)]
pub struct Hub(Mutex<(Vec<mpsc::Sender<Event>>, Option<Status>)>);

impl Hub {
    /// Listens from now on. A process that has ended says so at once.
    pub fn subscribe(&self) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut hub = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match hub.1 {
            Some(status) => drop(sender.try_send(Event::End(status))),
            None => hub.0.push(sender),
        }
        receiver
    }

    /// Tells every listener; one that is gone or stalls is dropped.
    pub async fn publish(&self, event: Event) {
        let listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone();
        for listener in listeners {
            if listener.send_timeout(event.clone(), STALL).await.is_err() {
                let mut hub = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                hub.0.retain(|other| !other.same_channel(&listener));
            }
        }
    }

    /// Tells every listener the end, and everyone who comes later.
    pub async fn end(&self, status: Status) {
        let listeners = {
            let mut hub = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            hub.1 = Some(status);
            std::mem::take(&mut hub.0)
        };
        for listener in listeners {
            let _ = listener.send_timeout(Event::End(status), STALL).await; // gone or stalled: it hears no more
        }
    }
}

/// The agent's end of one output.
pub struct Outlet {
    kind: Kind,
    fd: Option<Receiver>,
    buffer: Vec<u8>,
}

impl Outlet {
    /// # Errors
    /// When the descriptor cannot be made non-blocking or watched.
    pub fn new(kind: Kind, fd: OwnedFd) -> io::Result<Self> {
        // Unchecked, for a terminal's end is no pipe but is read like one.
        let fd = Receiver::from_owned_fd_unchecked(non_blocking(fd)?)?;
        Ok(Self { kind, fd: Some(fd), buffer: vec![0; CHUNK] })
    }

    pub fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// The next piece; waits for ever once the output is closed. `None` says that it closed just now.
    pub async fn next(&mut self) -> Option<Event> {
        let Some(fd) = &mut self.fd else { return pending().await };
        let read = fd.read(&mut self.buffer).await;
        self.took(read)
    }

    /// The next piece of what is there already, without waiting.
    fn rest(&mut self) -> Option<Event> {
        // The kernel is asked, not the runtime, which may not have heard of the last bytes yet.
        match nix::unistd::read(self.fd.as_ref()?, &mut self.buffer) {
            Err(Errno::EAGAIN) => None,
            read => self.took(read.map_err(io::Error::from)),
        }
    }

    /// A terminal whose last user has closed it says EIO; to its reader that is the end like any other.
    fn took(&mut self, read: io::Result<usize>) -> Option<Event> {
        match read {
            Ok(length @ 1..) => {
                Some(Event::Data(self.kind, Bytes::copy_from_slice(self.buffer.get(..length)?)))
            }
            Ok(0) | Err(_) => {
                self.fd = None;
                None
            }
        }
    }

    /// Everything the process had written when it ended. What it wrote is in the buffer by then, so a buffer's
    /// worth is enough: a background child may go on writing for ever.
    pub async fn drain_to(&mut self, hub: &Hub) {
        let mut left = match (&self.fd, self.kind) {
            (None, _) => return,
            (Some(_), Kind::Pty) => TERMINAL_BUFFER,
            (Some(fd), _) => fcntl(fd, FcntlArg::F_GETPIPE_SZ)
                .ok()
                .and_then(|size| usize::try_from(size).ok())
                .unwrap_or(TERMINAL_BUFFER),
        };
        while left > 0 {
            let Some(Event::Data(kind, bytes)) = self.rest() else { return };
            left = left.saturating_sub(bytes.len());
            hub.publish(Event::Data(kind, bytes)).await;
        }
    }
}

/// Makes a descriptor of our own, whose other end is the child's, non-blocking.
pub fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}
