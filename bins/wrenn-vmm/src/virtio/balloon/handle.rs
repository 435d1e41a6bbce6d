//! The balloon as the API sees it: no guest memory, so no waiting for a page.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::timerfd::TimerFd;
use serde::Serialize;

use super::super::Error;
use super::super::interrupt::Interrupt;
use super::set_timer;
use crate::config;

/// Pages of a MiB.
const MIB: u32 = 256;

/// Kinds of statistics.
pub const TAGS: usize = NAMES.len();

/// Firecracker's names for the statistics, by their tags in linux/virtio_balloon.h.
const NAMES: [&str; 16] = [
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kill",
    "alloc_stall",
    "async_scan",
    "direct_scan",
    "async_reclaim",
    "direct_reclaim",
];

/// `GET /balloon/statistics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BalloonStatistics {
    /// Pages of 4 KiB that the balloon shall hold.
    pub target_pages: u32,
    /// Pages that it holds, says the guest.
    pub actual_pages: u32,
    /// The same in MiB.
    pub target_mib: u32,
    /// The same in MiB.
    pub actual_mib: u32,
    /// What the guest has told about its memory, by Firecracker's names.
    #[serde(flatten)]
    pub guest: BTreeMap<&'static str, u64>,
}

/// What device and API share.
pub struct Shared {
    /// Pages: `num_pages` of the configuration space.
    pub target: AtomicU32,
    /// Pages: `actual` of the configuration space.
    pub actual: AtomicU32,
    /// Whether there is a driver.
    pub active: AtomicBool,
    pub deflate_on_oom: bool,
    /// Whether there is a queue for statistics.
    pub statistics: bool,
    pub interval_s: AtomicU64,
    pub timer: TimerFd,
    tags: Mutex<[Option<u64>; TAGS]>,
    memory_mib: u64,
    interrupt: Arc<Interrupt>,
}

impl Shared {
    pub fn new(
        config: &config::Balloon,
        memory_bytes: u64,
        timer: TimerFd,
        interrupt: Arc<Interrupt>,
    ) -> Self {
        let target = u32::try_from(config.amount_mib).unwrap_or(u32::MAX).saturating_mul(MIB);
        Self {
            target: AtomicU32::new(target),
            actual: AtomicU32::new(0),
            active: AtomicBool::new(false),
            deflate_on_oom: config.deflate_on_oom,
            statistics: config.stats_polling_interval_s > 0,
            interval_s: AtomicU64::new(config.stats_polling_interval_s),
            timer,
            tags: Mutex::default(),
            memory_mib: memory_bytes >> 20,
            interrupt,
        }
    }

    /// The latest statistics.
    pub fn tags(&self) -> MutexGuard<'_, [Option<u64>; TAGS]> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest tells one of its statistics. Newer ones have no name yet.
    pub fn report(&self, tag: u16, value: u64) {
        if let Some(place) = self.tags().get_mut(usize::from(tag)) {
            *place = Some(value);
        }
    }
}

/// A balloon at work. Cheap to clone.
#[derive(Clone)]
pub struct BalloonHandle(pub(super) Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to have the balloon hold `mib`. How far it is, [`statistics`](Self::statistics) tell.
    ///
    /// # Errors
    /// When the guest's driver is not there yet, or has not that much memory.
    pub fn set_target(&self, mib: u64) -> Result<(), Error> {
        if !self.0.active.load(Ordering::SeqCst) {
            return Err(Error::NotActive);
        }
        let limit = self.0.memory_mib;
        let pages = u32::try_from(mib).ok().filter(|_| mib <= limit).and_then(|mib| mib.checked_mul(MIB));
        self.0.target.store(pages.ok_or(Error::TooMuchMemory(limit))?, Ordering::SeqCst);
        self.0.interrupt.config_changed();
        Ok(())
    }

    /// What the balloon shall hold, MiB.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target.load(Ordering::SeqCst) / MIB)
    }

    /// Sets how often the guest is asked for statistics, seconds.
    ///
    /// # Errors
    /// When that would switch them on or off, or the timer cannot be set.
    pub fn set_interval(&self, seconds: u64) -> Result<(), Error> {
        if (seconds > 0) != self.0.statistics {
            return Err(Error::StatisticsChange);
        }
        self.0.interval_s.store(seconds, Ordering::SeqCst);
        if self.0.active.load(Ordering::SeqCst) {
            set_timer(&self.0.timer, seconds).map_err(|source| Error::Setup { slot: 0, source })?;
        }
        Ok(())
    }

    /// How large the balloon is, and what the guest told last.
    ///
    /// # Errors
    /// When the balloon was made without statistics.
    pub fn statistics(&self) -> Result<BalloonStatistics, Error> {
        if !self.0.statistics {
            return Err(Error::StatisticsDisabled);
        }
        let (target, actual) = (self.0.target.load(Ordering::SeqCst), self.0.actual.load(Ordering::SeqCst));
        let told = NAMES.iter().zip(*self.0.tags()).filter_map(|(name, value)| Some((*name, value?)));
        Ok(BalloonStatistics {
            target_pages: target,
            actual_pages: actual,
            target_mib: target / MIB,
            actual_mib: actual / MIB,
            guest: told.collect(),
        })
    }

    /// The balloon as it would be configured now.
    pub fn config(&self) -> config::Balloon {
        config::Balloon {
            amount_mib: self.target(),
            deflate_on_oom: self.0.deflate_on_oom,
            stats_polling_interval_s: self.0.interval_s.load(Ordering::SeqCst),
        }
    }
}
