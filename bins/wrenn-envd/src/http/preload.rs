//! `POST /memory/preload`: reads one byte of every page of guest memory, so that every page a restore left behind is
//! fetched before the next snapshot. `GET` tells how far it is.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{Response, StatusCode};
use serde::Serialize;

use super::{
    Body, Reply,
    kcore::{self, Piece},
};
use crate::agent::Agent;

const PAGE: u64 = 4096;
/// Pages between two looks at whether the preload is still wanted.
const BATCH: u64 = 1024;

/// The preload's state; shared with the thread that does it.
#[derive(Default)]
pub struct Preload(Arc<Mutex<Progress>>);

#[derive(Clone, Default, Serialize)]
struct Progress {
    state: State,
    /// Bytes of memory whose pages were touched.
    bytes: u64,
    /// Bytes there are.
    total: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Which run this is about; a run that finds another number here stops.
    #[serde(skip)]
    run: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    #[default]
    Idle,
    Running,
    Done,
    Failed,
}

pub fn get(agent: &Agent) -> Result<Response<Body>, Reply> {
    Ok(super::json(StatusCode::OK, &*lock(&agent.preload.0)))
}

/// Starts the preload unless it runs or is done, and answers at once.
pub fn post(agent: &Agent) -> Result<Response<Body>, Reply> {
    let mut progress = lock(&agent.preload.0);
    if matches!(progress.state, State::Idle | State::Failed) {
        *progress =
            Progress { state: State::Running, run: progress.run.wrapping_add(1), ..Progress::default() };
        let (shared, run) = (agent.preload.0.clone(), progress.run);
        let thread = std::thread::Builder::new().name("preload".into());
        let started = thread.spawn(move || touch_all(&shared, run));
        if let Err(error) = started {
            *progress = Progress { state: State::Failed, error: Some(error.to_string()), ..progress.clone() };
        }
    }
    Ok(super::json(StatusCode::ACCEPTED, &*progress))
}

impl Preload {
    /// Back to idle; a run under way stops.
    pub fn reset(&self) {
        let mut progress = lock(&self.0);
        *progress = Progress { run: progress.run.wrapping_add(1), ..Progress::default() };
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread: touches everything, then says how it went, unless nobody wants to know any more.
fn touch_all(shared: &Mutex<Progress>, run: u64) {
    let outcome = open().and_then(|(core, pieces)| {
        with(shared, run, |progress| progress.total = pieces.iter().map(|piece| piece.bytes).sum());
        pieces.iter().try_for_each(|piece| touch(&core, *piece, shared, run))
    });
    with(shared, run, |progress| match outcome {
        Ok(()) => progress.state = State::Done,
        Err(error) => {
            progress.state = State::Failed;
            progress.error = Some(error);
        }
    });
}

fn open() -> Result<(File, Vec<Piece>), String> {
    let core = File::open("/proc/kcore").map_err(|error| format!("/proc/kcore: {error}"))?;
    let mut headers = vec![0; kcore::HEADERS];
    let read = core.read_at(&mut headers, 0).map_err(|error| format!("/proc/kcore: {error}"))?;
    headers.truncate(read);
    let iomem = fs::read_to_string("/proc/iomem").map_err(|error| format!("/proc/iomem: {error}"))?;
    Ok((core, kcore::pieces(&headers, &iomem)?))
}

/// Reads a byte of each page. A page the kernel will not show (poisoned, or the balloon's) needs no touch.
fn touch(core: &File, piece: Piece, shared: &Mutex<Progress>, run: u64) -> Result<(), String> {
    let mut done = 0;
    while done < piece.bytes {
        let batch = (piece.bytes - done).min(BATCH * PAGE);
        for at in (done..done + batch).step_by(PAGE as usize) {
            match core.read_at(&mut [0], piece.offset + at) {
                Ok(1..) => (),
                Ok(_) => return Err(format!("/proc/kcore ends at {}", piece.offset + at)),
                Err(error) if refused(&error) => (),
                Err(error) => return Err(format!("/proc/kcore at {}: {error}", piece.offset + at)),
            }
        }
        done += batch;
        if !with(shared, run, |progress| progress.bytes += batch) {
            return Err("superseded".into()); // told to nobody: the run is not the current one
        }
    }
    Ok(())
}

fn refused(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().is_some_and(|errno| [Errno::EIO, Errno::EFAULT].contains(&Errno::from_raw(errno)))
}

/// Changes the progress of this run; false when it is no longer the current one.
fn with(shared: &Mutex<Progress>, run: u64, change: impl FnOnce(&mut Progress)) -> bool {
    let mut progress = lock(shared);
    let current = progress.run == run;
    if current {
        change(&mut progress);
    }
    current
}
