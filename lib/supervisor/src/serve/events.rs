//! The states of all sandboxes and their changes, from inotify on the documents: they are the truth whoever changes them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use store::Sandboxes;
use tokio::sync::mpsc;
use wire::{Error, Host, Id, Kind, json};

use super::Server;
use super::reply::{self, Body};
use crate::documents::{Change, Documents};

/// Lines that wait for a reader. One that is further behind is let go.
const BEHIND: usize = 1024;

/// What is told to all readers.
#[derive(Debug, Clone, Default)]
pub struct Feed(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    present: BTreeMap<Id, String>,
    readers: Vec<mpsc::Sender<Bytes>>,
    closed: bool,
}

impl Feed {
    /// Begins to follow the documents.
    pub fn start(host: &Host) -> Result<Self, Error> {
        let all = host.root().join("sandboxes");
        let failed = |error: io::Error| {
            let message = format!("cannot watch {}", all.display());
            Error::new(Kind::of_io(&error), "serve.watch", message).detail(error)
        };
        std::fs::create_dir_all(&all).map_err(failed)?;
        let documents = Documents::new(host).map_err(failed)?;
        let feed = Self::default();
        let mut follower = Follower { host: host.clone(), documents, feed: feed.clone() };
        follower.look_at_all();
        let follow = move || {
            let error = follower.follow();
            log::error!("the documents are not followed any more: {error}");
            follower.feed.close();
        };
        std::thread::Builder::new().name("events".into()).spawn(follow).map_err(failed)?;
        Ok(feed)
    }

    /// Lets all readers go.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.readers.clear();
    }

    /// A new reader: what is there, then what changes.
    fn subscribe(&self) -> Lines {
        let mut state = self.state();
        let present = state.present.iter().map(|(id, state)| line(id, state)).collect();
        let (reader, changes) = mpsc::channel(BEHIND);
        if !state.closed {
            state.readers.push(reader);
        }
        Lines { feed: self.clone(), present, changes, ended: false }
    }

    /// A sandbox's state, `None` when it is gone.
    fn tell(&self, id: &Id, now: Option<&str>) {
        let mut state = self.state();
        let before = match now {
            Some(now) => state.present.insert(id.clone(), now.to_owned()),
            None => state.present.remove(id),
        };
        if before.as_deref() == now {
            return;
        }
        let line = line(id, now.unwrap_or("removed"));
        // A reader that has gone, or is too far behind, is forgotten.
        state.readers.retain(|reader| reader.try_send(line.clone()).is_ok());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn line(id: &Id, state: &str) -> Bytes {
    reply::line(&wire::event("state", json!({"id": id.as_str(), "state": state})))
}

/// The answer to one reader.
pub fn answer(server: &Server) -> Response<Body> {
    reply::with(StatusCode::OK, reply::NDJSON, server.feed.subscribe().boxed_unsync())
}

struct Lines {
    feed: Feed,
    present: VecDeque<Bytes>,
    changes: mpsc::Receiver<Bytes>,
    ended: bool,
}

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = match self.present.pop_front() {
            Some(line) => Some(line),
            None => ready!(self.changes.poll_recv(context)),
        };
        let line = next.unwrap_or_else(|| {
            self.ended = true;
            let why = if self.feed.state().closed { "the server ends" } else { "too slow a reader" };
            reply::line(&wire::event("closed", json!({"why": why})))
        });
        Poll::Ready(Some(Ok(Frame::data(line))))
    }
}

/// Tells of the documents what changes.
struct Follower {
    host: Host,
    documents: Documents,
    feed: Feed,
}

impl Follower {
    /// Follows for ever. Gives why it cannot.
    fn follow(&mut self) -> io::Error {
        loop {
            let waited = sys::process::any_readable(&[self.documents.as_fd()]);
            match waited.and_then(|_| self.documents.read()) {
                Ok(changes) => changes.into_iter().for_each(|change| self.note(change)),
                Err(error) => return error,
            }
        }
    }

    fn note(&mut self, change: Change) {
        match change {
            Change::Document(id) | Change::Came(id) => self.look_at(&id),
            Change::Went(id) => self.feed.tell(&id, None),
            Change::Lost => self.look_at_all(),
        }
    }

    /// Everything anew: at the start, and when the kernel had more to say than it keeps.
    fn look_at_all(&mut self) {
        let ids = Sandboxes::of(&self.host).ids().unwrap_or_default();
        let known: Vec<Id> = self.feed.state().present.keys().cloned().collect();
        for gone in known.iter().filter(|id| !ids.contains(id)) {
            self.feed.tell(gone, None);
        }
        for id in ids {
            // Read after that: what is written later is noticed.
            self.documents.follow(&id);
            self.look_at(&id);
        }
    }

    fn look_at(&self, id: &Id) {
        match Sandboxes::of(&self.host).load(id) {
            Ok(document) => {
                let state = document.get("state").and_then(|state| state.as_str());
                self.feed.tell(id, Some(state.unwrap_or("unknown")));
            }
            // Being made, or being removed: that is told when its directory goes.
            Err(store::Error::NoSandbox { .. }) => {}
            Err(error) => log::warn!("{id}: {error}"),
        }
    }
}
