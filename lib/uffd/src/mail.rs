//! Queues between the threads of a server, with a descriptor for poll(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// The end that sends.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    queue: mpsc::Sender<T>,
    bell: Arc<EventFd>,
}

/// The end that receives: readable when there is something.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    queue: mpsc::Receiver<T>,
    bell: Arc<EventFd>,
}

/// A new queue.
pub(crate) fn mailbox<T>() -> io::Result<(Sender<T>, Mailbox<T>)> {
    let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
    let (sender, queue) = mpsc::channel();
    Ok((Sender { queue: sender, bell: bell.clone() }, Mailbox { queue, bell }))
}

impl<T> Sender<T> {
    /// Sends; gives whether there is anybody to receive it.
    pub fn send(&self, what: T) -> bool {
        // The counter cannot overflow: the other end wipes it.
        self.queue.send(what).is_ok() && self.bell.write(1).is_ok()
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: self.bell.clone() }
    }
}

impl<T> Mailbox<T> {
    /// Takes out all there is. It does not wait.
    pub fn empty(&self) -> Vec<T> {
        // First: what is put in behind this rings again.
        let _ = self.bell.read();
        self.queue.try_iter().collect()
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
