//! The balloon (virtio 1.2, 5.5): the guest gives memory up, the host takes it back.

mod handle;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

pub use self::handle::{BalloonHandle, BalloonStatistics};
use self::handle::{Shared, TAGS};
use super::device::Device;
use super::interrupt::Interrupt;
use super::ring::{Broken, Chain, Ring};
use super::state::Own;
use crate::config;
use crate::memory::{Discard, GuestMemory, PAGE};

/// `VIRTIO_ID_BALLOON`.
const ID: u32 = 5;
/// `VIRTIO_BALLOON_F_STATS_VQ`.
const STATS_VQ: u32 = 1;
/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`.
const DEFLATE_ON_OOM: u32 = 2;

const INFLATE: usize = 0;
const STATISTICS: usize = 2;

/// Where the guest's `actual` is in the configuration space.
const ACTUAL: u64 = 4;
/// Bytes of page numbers in one request, at most: Linux sends 1 KiB, others 4 KiB.
const REQUEST: usize = 64 << 10;
/// Statistics in one report, at most: Linux sends 16.
const REPORT: usize = 256;

/// A balloon, as configured.
#[derive(Debug, Clone)]
pub struct Balloon(config::Balloon);

impl Balloon {
    /// A balloon.
    pub fn new(config: &config::Balloon) -> Self {
        Self(config.clone())
    }

    /// Connects it with the machine.
    pub(super) fn inflatable(
        self,
        memory: &GuestMemory,
        discard: Arc<dyn Discard>,
        interrupt: Arc<Interrupt>,
    ) -> io::Result<Inflatable> {
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let bytes: u64 = memory.iter().map(GuestMemoryRegion::len).sum();
        let shared = Shared::new(&self.0, bytes, timer, interrupt);
        Ok(Inflatable { shared: Arc::new(shared), discard, report: None })
    }
}

/// What a snapshot keeps of a balloon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BalloonState {
    target: u32,
    actual: u32,
    interval_s: u64,
    report: Option<u16>,
    tags: [Option<u64>; TAGS],
}

/// A balloon at work.
pub struct Inflatable {
    shared: Arc<Shared>,
    discard: Arc<dyn Discard>,
    /// The buffer that the guest's last report came in. Given back, the guest fills it again.
    report: Option<u16>,
}

impl Inflatable {
    /// The balloon, for the API.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.shared))
    }

    /// Takes pages of many requests, so that neighbours go in one piece.
    fn inflate(&self, ring: &mut Ring) -> Result<(), Broken> {
        let (mut pages, mut heads) = (Vec::new(), Vec::new());
        while let Some(chain) = ring.pop()? {
            read_pages(&chain, &mut pages)?;
            heads.push(chain.head);
        }
        pages.sort_unstable();
        pages.dedup();
        let mut refused = Ok(());
        for run in pages.chunk_by(|page, next| page + 1 == *next) {
            let (address, bytes) = (u64::from(run[0]) * PAGE, run.len() as u64 * PAGE);
            refused =
                refused.and(self.discard.discard(address, bytes).map_err(|error| (address, bytes, error)));
        }
        if let Err((address, bytes, error)) = refused {
            log::warn!("memory in the balloon cannot be taken, first {bytes} bytes at {address:#x}: {error}");
        }
        // Only now: the guest must not get a page back that is yet to be taken.
        heads.into_iter().try_for_each(|head| ring.push(head, 0))
    }

    fn deflate(ring: &mut Ring) -> Result<(), Broken> {
        while let Some(chain) = ring.pop()? {
            ring.push(chain.head, 0)?;
        }
        Ok(())
    }

    fn statistics(&mut self, ring: &mut Ring) -> Result<(), Broken> {
        while let Some(mut chain) = ring.pop()? {
            if let Some(surplus) = self.report.replace(chain.head) {
                ring.push(surplus, 0)?;
            }
            for _ in 0..REPORT {
                let Some([t0, t1, value @ ..]) = chain.readable.take::<10>() else { break };
                self.shared.report(u16::from_le_bytes([t0, t1]), u64::from_le_bytes(value));
            }
        }
        // EAGAIN: it is not time yet.
        if self.shared.timer.wait().is_ok()
            && let Some(report) = self.report.take()
        {
            ring.push(report, 0)?;
        }
        Ok(())
    }
}

/// The page numbers of a request.
fn read_pages(chain: &Chain, pages: &mut Vec<u32>) -> Result<(), Broken> {
    if chain.readable.len() > REQUEST {
        return Err(Broken("too many pages at once".into()));
    }
    let mut bytes = vec![0; chain.readable.len()];
    chain.readable.read(&mut bytes);
    let (numbers, _) = bytes.as_chunks();
    pages.extend(numbers.iter().copied().map(u32::from_le_bytes));
    Ok(())
}

/// Has the timer of the statistics tick.
fn set_timer(timer: &TimerFd, interval_s: u64) -> io::Result<()> {
    match interval_s {
        0 => timer.unset()?,
        interval_s => {
            let interval = TimeSpec::new(i64::try_from(interval_s).unwrap_or(i64::MAX), 0);
            timer.set(Expiration::Interval(interval), TimerSetTimeFlags::empty())?;
        }
    }
    Ok(())
}

impl Device for Inflatable {
    fn kind(&self) -> u32 {
        ID
    }

    fn features(&self) -> u64 {
        u64::from(self.shared.statistics) << STATS_VQ
            | u64::from(self.shared.deflate_on_oom) << DEFLATE_ON_OOM
    }

    fn queues(&self) -> usize {
        if self.shared.statistics { 3 } else { 2 }
    }

    fn config(&self) -> Vec<u8> {
        // num_pages, actual
        [&self.shared.target, &self.shared.actual]
            .map(|pages| pages.load(Ordering::SeqCst).to_le_bytes())
            .concat()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(pages)) = (offset, data.try_into()) {
            self.shared.actual.store(u32::from_le_bytes(pages), Ordering::SeqCst);
        }
    }

    fn start(&mut self, _features: u64) -> io::Result<()> {
        set_timer(&self.shared.timer, self.shared.interval_s.load(Ordering::SeqCst))?;
        self.shared.active.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.active.store(false, Ordering::SeqCst);
        self.shared.actual.store(0, Ordering::SeqCst);
        self.report = None;
    }

    fn process(&mut self, queue: usize, ring: &mut Ring) -> Result<(), Broken> {
        match queue {
            INFLATE => self.inflate(ring),
            STATISTICS => self.statistics(ring),
            _ => Self::deflate(ring),
        }
    }

    fn source(&self) -> Option<(BorrowedFd<'_>, usize)> {
        self.shared.statistics.then(|| (self.shared.timer.as_fd(), STATISTICS))
    }

    fn save(&self) -> Own {
        Own::Balloon(Box::new(BalloonState {
            target: self.shared.target.load(Ordering::SeqCst),
            actual: self.shared.actual.load(Ordering::SeqCst),
            interval_s: self.shared.interval_s.load(Ordering::SeqCst),
            report: self.report,
            tags: *self.shared.tags(),
        }))
    }

    fn restore(&mut self, own: &Own) -> Result<(), String> {
        let Own::Balloon(state) = own else { return Err("state of another kind of device".into()) };
        if (state.interval_s > 0) != self.shared.statistics {
            return Err("the balloon's statistics are on in one place and off in the other".into());
        }
        self.shared.target.store(state.target, Ordering::SeqCst);
        self.shared.actual.store(state.actual, Ordering::SeqCst);
        self.shared.interval_s.store(state.interval_s, Ordering::SeqCst);
        *self.shared.tags() = state.tags;
        self.report = state.report;
        let active = self.shared.active.load(Ordering::SeqCst);
        let interval_s = if active { state.interval_s } else { 0 };
        set_timer(&self.shared.timer, interval_s).map_err(|error| format!("the balloon's timer: {error}"))
    }
}
