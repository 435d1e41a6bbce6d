//! A vCPU's thread and the orders it takes.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::{Killable, SIGRTMIN, block_signal, clear_signal};

use super::exits::{self, Buses, Stop};
use super::{Error, Vcpu, VcpuState};
use crate::machine::{Ending, Exit};
use crate::seccomp;

/// What a vCPU's thread is told. It answers on the sender that comes along: an answer that comes too late is nobody's.
enum Order {
    Run,
    Pause(Sender<()>),
    Save(Sender<Result<VcpuState, Error>>),
}

/// A vCPU on its thread. It starts paused. Dropped, the thread ends.
pub struct Thread {
    index: u8,
    // Taken when dropped: the thread ends once nobody can give orders.
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

/// A question that was asked and not yet answered.
pub struct Asked<T> {
    index: u8,
    answer: Receiver<T>,
}

impl Thread {
    /// Starts the thread, under its seccomp filter.
    ///
    /// # Errors
    /// When it could not start, or not enter the filter.
    pub fn start(vcpu: Vcpu, buses: Arc<Buses>, ending: Arc<Ending>) -> Result<Self, Error> {
        let index = vcpu.index;
        let failed = |source| Error::Thread { index, source };
        let (orders, received) = channel();
        let (started, ready) = channel();
        let body = move || {
            let ready = kicks_end_only_runs(&vcpu.fd).and_then(|()| seccomp::enter(seccomp::Thread::Vcpu));
            let is_ready = ready.is_ok();
            let _guard = EndsIfPanicking(&ending);
            // The receiver waits for it.
            let _ = started.send(ready);
            if is_ready {
                obey(vcpu, &received, &buses, &ending);
            }
        };
        let thread = Builder::new().name(format!("vcpu {index}")).spawn(body).map_err(failed)?;
        ready.recv().map_err(io::Error::other).and_then(|ready| ready).map_err(failed)?;
        Ok(Self { index, orders: Some(orders), thread: Some(thread) })
    }

    /// Lets it run. Nothing happens if it does.
    ///
    /// # Errors
    /// When the thread is dead.
    pub fn run(&self) -> Result<(), Error> {
        self.order(Order::Run)
    }

    /// Stops it; [`Asked::wait`] returns once it has. Nothing happens if it stands still.
    ///
    /// # Errors
    /// When the thread is dead.
    pub fn pause(&self) -> Result<Asked<()>, Error> {
        self.ask(Order::Pause)
    }

    /// Its state. It must be paused.
    ///
    /// # Errors
    /// When the thread is dead.
    pub fn save(&self) -> Result<Asked<Result<VcpuState, Error>>, Error> {
        self.ask(Order::Save)
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<Asked<T>, Error> {
        let (sender, answer) = channel();
        self.order(order(sender))?;
        Ok(Asked { index: self.index, answer })
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        let orders = self.orders.as_ref().expect("taken only when dropped");
        orders
            .send(order)
            .map_err(|_| Error::Thread { index: self.index, source: io::Error::other("it has ended") })?;
        self.kick();
        Ok(())
    }

    /// Ends KVM_RUN, now or when it is next called.
    fn kick(&self) {
        if let Some(thread) = &self.thread
            && let Err(error) = thread.kill(SIGRTMIN())
        {
            log::error!("vCPU {} cannot be signalled: {error}", self.index);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.orders = None;
        self.kick();
        // Not joined: a vCPU that waits for a page would hold up the whole program.
        self.thread = None;
    }
}

impl<T> Asked<T> {
    /// The answer.
    ///
    /// # Errors
    /// When there is none by then.
    pub fn wait(self, deadline: Instant) -> Result<T, Error> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.answer.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => Error::Stuck(self.index),
            RecvTimeoutError::Disconnected => {
                Error::Thread { index: self.index, source: io::Error::other("it has ended") }
            }
        })
    }
}

/// A machine without one of its vCPUs is over.
struct EndsIfPanicking<'a>(&'a Ending);

impl Drop for EndsIfPanicking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end(Exit::Crash("a vCPU's thread panicked".into()));
        }
    }
}

/// The thread's life: orders, and running in between.
fn obey(mut vcpu: Vcpu, orders: &Receiver<Order>, buses: &Buses, ending: &Ending) {
    let mut running = false;
    loop {
        let order =
            if running { orders.try_recv() } else { orders.recv().map_err(|_| TryRecvError::Disconnected) };
        match order {
            Ok(Order::Run) => running = true,
            Ok(Order::Pause(paused)) => {
                if std::mem::take(&mut running) {
                    // The guest's watchdogs forgive the time it stands still. EINVAL: it has no such clock.
                    let _ = vcpu.fd.kvmclock_ctrl();
                    settle(&mut vcpu.fd, buses, ending);
                }
                let _ = paused.send(());
            }
            Ok(Order::Save(answer)) => {
                let _ = answer.send(vcpu.save());
            }
            Err(TryRecvError::Disconnected) => return,
            // Every order is followed by a kick, so none is overlooked while the guest runs.
            Err(TryRecvError::Empty) => match exits::run(&mut vcpu.fd, buses, ending) {
                Stop::Kicked => forget_kicks(),
                Stop::Ended => running = false,
            },
        }
    }
}

/// Has KVM do what it would do before the guest's next instruction: write the guest's clock and its account of stolen time,
/// and put a timer that has fired into the local APIC. With `immediate_exit` it would not get there; with a signal pending
/// it does, and runs no instruction. From here on nothing writes to the paused guest's memory. (A timer that fires later
/// is in the saved state as one that is due: KVM fires it when the state is set.)
fn settle(vcpu: &mut VcpuFd, buses: &Buses, ending: &Ending) {
    // SAFETY: raise has no preconditions; the signal is blocked in this thread, so that it stays pending.
    unsafe { libc::raise(SIGRTMIN()) };
    exits::run(vcpu, buses, ending);
    forget_kicks();
}

fn forget_kicks() {
    if let Err(error) = clear_signal(SIGRTMIN()) {
        log::error!("a signal cannot be taken back: {error}");
    }
}

/// Blocks the kick's signal in this thread except inside KVM_RUN, so that one that comes earlier is not lost: KVM_RUN
/// returns EINTR at once. No handler ever runs.
fn kicks_end_only_runs(vcpu: &VcpuFd) -> io::Result<()> {
    /// `struct kvm_signal_mask` with the kernel's 8-byte set.
    #[repr(C, packed)]
    struct Mask {
        bytes: u32,
        signals: u64,
    }
    // The number holds the size of the structure without its flexible array.
    ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, u32);

    block_signal(SIGRTMIN()).map_err(|error| io::Error::other(error.to_string()))?;
    let mask = Mask { bytes: 8, signals: !(1 << (SIGRTMIN() - 1)) };
    // SAFETY: the kernel reads `bytes` bytes after the length, which are there, and writes nothing.
    match unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
