//! The io thread: it alone works on queues, taps and timers, and it can be parked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberOps,
};

use super::Error;
use super::unit::Unit;
use crate::seccomp;

/// How long a page that the thread waits for may take to come.
const PARK: Duration = Duration::from_secs(30);
/// How long its end is waited for.
const STOP: Duration = Duration::from_secs(1);
/// Set in an event's data when it is from a device's source, not its driver.
const SOURCE: u32 = 1 << 31;

/// The thread, as others see it.
pub struct IoThread {
    gate: Arc<Gate>,
    waker: RemoteEndpoint<Source>,
    thread: Option<JoinHandle<()>>,
}

/// Where the thread is told to stand still.
#[derive(Default)]
pub struct Gate {
    /// Set while the thread is to come here: devices look at it between two requests.
    pub yielding: Arc<AtomicBool>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stop: bool,
    at: At,
}

#[derive(Default, PartialEq)]
enum At {
    #[default]
    Work,
    Parked,
    End,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, at: At) {
        self.state().at = at;
        self.changed.notify_all();
    }

    /// Waits until the thread is where it is wanted; whether it got there in time.
    fn wait(&self, limit: Duration, there: impl Fn(&At) -> bool) -> bool {
        let wait = self.changed.wait_timeout_while(self.state(), limit, |state| !there(&state.at));
        let (state, _) = wait.unwrap_or_else(PoisonError::into_inner);
        there(&state.at)
    }

    /// On the io thread: stands still as long as it is to. `None`: it is to end; else whether it stood.
    fn pass(&self) -> Option<bool> {
        let mut state = self.state();
        let mut stood = false;
        while self.yielding.load(Ordering::SeqCst) && !state.stop {
            state.at = At::Parked;
            self.changed.notify_all();
            stood = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.at = At::Work;
        (!state.stop).then_some(stood)
    }
}

impl IoThread {
    /// Starts the thread, parked and under its seccomp filter.
    ///
    /// # Errors
    /// What epoll, the thread's start or its filter said.
    pub fn start(units: Vec<Arc<Unit>>, gate: Arc<Gate>) -> Result<Self, Error> {
        gate.yielding.store(true, Ordering::SeqCst);
        let mut manager = EventManager::new().map_err(|error| Error::Thread(error.to_string()))?;
        for unit in &units {
            manager.add_subscriber(Source(Arc::clone(unit)));
        }
        let waker = manager.remote_endpoint();
        let inside = Arc::clone(&gate);
        let (started, ready) = channel();
        let body = move || {
            let entered = seccomp::enter(seccomp::Thread::Io);
            let is_ready = entered.is_ok();
            // The receiver waits for it.
            let _ = started.send(entered);
            if is_ready {
                run(&mut manager, &units, &inside);
            }
        };
        let failed = |error: std::io::Error| Error::Thread(error.to_string());
        let thread = Builder::new().name("io".into()).spawn(body).map_err(failed)?;
        ready.recv().map_err(std::io::Error::other).and_then(|entered| entered).map_err(failed)?;
        let this = Self { gate, waker, thread: Some(thread) };
        this.park()?;
        Ok(this)
    }

    /// Returns once the thread touches nothing any more. Parked twice is parked.
    ///
    /// # Errors
    /// When it does not come within 30 s; it goes on then.
    pub fn park(&self) -> Result<(), Error> {
        self.park_within(PARK)
    }

    /// The same, with another limit.
    ///
    /// # Errors
    /// When it does not come in time; it goes on then.
    pub fn park_within(&self, limit: Duration) -> Result<(), Error> {
        self.gate.yielding.store(true, Ordering::SeqCst);
        self.wake();
        if self.gate.wait(limit, |at| *at == At::Parked) {
            return Ok(());
        }
        self.unpark();
        Err(Error::Busy(limit))
    }

    /// Lets the thread go on.
    pub fn unpark(&self) {
        let _state = self.gate.state();
        self.gate.yielding.store(false, Ordering::SeqCst);
        self.gate.changed.notify_all();
    }

    fn wake(&self) {
        if let Err(error) = self.waker.kick() {
            log::error!("the io thread cannot be woken: {error}");
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.gate.state().stop = true;
        self.gate.yielding.store(true, Ordering::SeqCst);
        self.gate.changed.notify_all();
        self.wake();
        // A thread that waits for a page that does not come ends with the process.
        let ended = self.gate.wait(STOP, |at| *at == At::End);
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            let _ = thread.join();
        }
    }
}

fn run(manager: &mut EventManager<Source>, units: &[Arc<Unit>], gate: &Gate) {
    let _guard = AbortOnPanic;
    while let Some(stood) = gate.pass() {
        // Notifications may have got lost meanwhile, or with the VMM that the state is from.
        if stood {
            units.iter().for_each(|unit| unit.serve_all());
        } else if let Err(error) = manager.run() {
            log::error!("the io thread cannot wait for events: {error}");
            std::process::abort();
        }
    }
    gate.set(At::End);
}

/// A VM without its io thread would only hang.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// A device, as the event loop sees it.
struct Source(Arc<Unit>);

impl MutEventSubscriber for Source {
    fn process(&mut self, events: Events, _: &mut EventOps) {
        let queue = (events.data() & !SOURCE) as usize;
        if events.data() & SOURCE == 0 {
            // Taken before the work: what comes during it is a notification of its own. Empty is no error.
            let _ = self.0.kicks[queue].read();
        }
        self.0.serve(queue);
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (queue, kick) in (0..).zip(&self.0.kicks) {
            add(ops, Events::with_data(kick, queue, EventSet::IN));
        }
        let live = self.0.live();
        if let Some((source, queue)) = live.device.source() {
            // By its edges: frames that there are no buffers for would else wake the thread for ever.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            add(ops, Events::with_data(&source, queue as u32 | SOURCE, events));
        }
    }
}

fn add(ops: &mut EventOps, events: Events) {
    if let Err(error) = ops.add(events) {
        log::error!("a device's events cannot be waited for: {error}");
    }
}
