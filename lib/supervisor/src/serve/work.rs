//! A verb at work on a thread of its own, by the same path as on the command line: lock, work, and then its reply is
//! delivered or its work undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use wire::{Document, Error, Reply, Value};

use super::request::Asked;
use super::routes::Route;
use super::{Server, reply};
use crate::TOOL;

/// Events on their way to a client. One that takes none holds the command back, as a full pipe does.
const WAITING: usize = 16;

/// What a verb tells.
#[derive(Debug)]
pub enum Told {
    /// As it works.
    Event(Bytes),
    /// At its end. The work stays if the receipt is given.
    Document(Document, Receipt),
    /// It has failed; everything is undone.
    Failed(Document, Error),
}

/// Says that a reply has been delivered. Dropped, it says the contrary.
#[derive(Debug)]
pub struct Receipt {
    /// The reply is delivered.
    pub delivered: oneshot::Sender<()>,
    /// The work is settled, and its locks are free.
    pub settled: oneshot::Receiver<()>,
}

/// A verb at work, seen from its client. Dropped, the work is given up if its route says so.
pub struct Work {
    told: mpsc::Receiver<Told>,
    given_up: Option<Arc<AtomicBool>>,
}

impl Work {
    /// What it tells next; `None` after its last.
    pub async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }

    /// The same for a body that is polled.
    pub fn poll_next(&mut self, context: &mut std::task::Context) -> std::task::Poll<Option<Told>> {
        self.told.poll_recv(context)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(flag) = &self.given_up {
            flag.store(true, Ordering::Relaxed);
        }
    }
}

/// Starts the verb. It keeps its place until it is done.
pub fn start(server: &Arc<Server>, route: &'static Route, asked: Asked, place: OwnedSemaphorePermit) -> Work {
    let (tell, told) = mpsc::channel(WAITING);
    let given_up = Arc::new(AtomicBool::new(false));
    let (server, flag) = (server.clone(), given_up.clone());
    tokio::task::spawn_blocking(move || {
        wire::unless_given_up(flag, || run(&server, route, asked, &tell));
        drop(place);
    });
    Work { told, given_up: route.given_up.then_some(given_up) }
}

fn run(server: &Server, route: &Route, asked: Asked, tell: &mpsc::Sender<Told>) {
    let Asked { mut document, options } = asked;
    // To a client that has gone nothing is told: the verb learns it from its next look at `check_interrupt`.
    let mut events = |event: &Value| {
        let _ = tell.blocking_send(Told::Event(reply::line(event)));
        Ok(())
    };
    let verb = match TOOL.verb(route.verb) {
        Ok(verb) => verb,
        Err(error) => return drop(tell.blocking_send(Told::Failed(document, error))),
    };
    match TOOL.begin(verb, &mut document, &server.host, options, &mut events) {
        Ok(finished) if finished.reply == Reply::Document => {
            let (delivered, delivery) = oneshot::channel();
            let (settle, settled) = oneshot::channel();
            let told = tell.blocking_send(Told::Document(document, Receipt { delivered, settled }));
            if told.is_ok() && delivery.blocking_recv().is_ok() {
                finished.commit();
                let _ = settle.send(());
            } else {
                log::warn!("{}: the reply could not be delivered", verb.name);
                // What cannot be undone is logged where it fails.
                let _ = finished.undo();
            }
        }
        Ok(finished) => finished.commit(),
        Err(failed) => {
            log::info!("{}: {}", verb.name, failed.error);
            let last = match failed.emitted {
                true => Told::Event(reply::line(&failed.event(&TOOL, verb))),
                false => Told::Failed(document, failed.error),
            };
            let _ = tell.blocking_send(last);
        }
    }
}
