//! The page server proper: events in, pages out. One thread does it all, which is what makes it exact: a discard is
//! marked in the step that reads it, and no copy decided before can land after it.
//!
//! Nothing here waits. The caller polls, and calls [`Engine::drain`], [`Engine::serve`] and [`Engine::prefetch`].

mod fill;
mod told;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use snap::Image;
use sys::process::readable;
use sys::uffd::{Event, Filled, Uffd, messages, page_size};

use crate::ahead::Ahead;
use crate::area::{self, Area, Limit, Scratch};
use crate::checking::Checking;
use crate::epochs::Epochs;
use crate::error::LostPage;
use crate::prefetch::{Plan, Target};
use crate::replay::Replay;
use crate::seen::{Fault, Seen};
use crate::state::{Counter, State};
use crate::trace::Kind;
use crate::workingset::Recorder;
use crate::{Error, Prefetch, Region};

/// The most that one demand fault takes of the image when somebody reads it in order, in bytes: what comes along costs who
/// waits about 5 µs.
const AROUND: u64 = 64 << 10;

/// The most discarded pages that one fault fills.
const REFILLED: u64 = 512;

/// What [`Counter::Refused`] says.
const MOVED: u64 = 1;
const COPIED: u64 = 2;

const ENOMEM: i32 = Errno::ENOMEM as i32;
const EINVAL: i32 = Errno::EINVAL as i32;

/// What an image loses, it loses by pages of at least this size.
const SMALLEST: usize = 4096;

/// How long the kernel may say that there is no memory for a page that somebody waits for.
const OUT_OF_MEMORY: Duration = Duration::from_secs(10);

/// Serves one VMM's memory.
pub struct Engine {
    uffd: Uffd,
    image: Arc<Image>,
    state: State,
    areas: Vec<Area>,
    epochs: Epochs,
    faults: VecDeque<Fault>,
    /// Faults on pages of the image, and on discarded ones.
    around: Ahead,
    refills: Ahead,
    plan: Plan,
    recorder: Option<Recorder>,
    replay: Option<Replay>,
    scratch: Scratch,
    checking: Option<Checking>,
    seen: Seen,
    poisoned: Vec<LostPage>,
    lost_ahead: Option<LostPage>,
    told_of_lost: bool,
    short_of_memory: Option<Instant>,
}

/// What a request to fill pages came to.
struct Came {
    step: Step,
    kind: Kind,
    pages: u64,
}

impl Came {
    fn nowhere(step: Step) -> Self {
        Self { step, kind: Kind::Exists, pages: 0 }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing is left to do.
    Done,
    /// There is more to do.
    More,
    /// A discard is under way: read events, then try again.
    Again,
    /// The VMM is gone.
    Gone,
}

impl Engine {
    /// Serves `regions` of whoever made `uffd` from `image`.
    ///
    /// # Errors
    /// `corrupt` when the image is shorter than the memory.
    pub fn new(uffd: Uffd, image: impl Into<Arc<Image>>, regions: Vec<Region>) -> Result<Self, Error> {
        let state = State::new(&regions).map_err(|source| Error::State { source })?;
        Self::on(uffd, image.into(), &regions, state)
    }

    /// Goes on where another server ended, however it ended: applies what it had read, and wakes who waits for a page, to ask
    /// again.
    ///
    /// # Errors
    /// As [`Engine::new`]; what waking said.
    pub(crate) fn resume(
        uffd: Uffd,
        image: Arc<Image>,
        regions: &[Region],
        state: State,
    ) -> Result<Self, Error> {
        let mut engine = Self::on(uffd, image, regions, state)?;
        let left = messages::left(engine.state.messages());
        for event in left.map_err(|source| Error::State { source })? {
            // Faults come again.
            let Self { state, areas, epochs, seen, .. } = &mut engine;
            apply(event, state, areas, epochs.now(), seen);
        }
        messages::forget(engine.state.messages());
        for Region { address, size, offset, .. } in regions.iter().copied() {
            match engine.uffd.wake(address, size).map_err(|error| (error.raw_os_error(), error)) {
                Ok(()) | Err((Some(ENOMEM | EINVAL), _)) => {}
                Err((_, source)) => return Err(Error::Fill { offset, source }),
            }
        }
        Ok(engine)
    }

    fn on(uffd: Uffd, image: Arc<Image>, regions: &[Region], state: State) -> Result<Self, Error> {
        let wanted = Region::end_of(regions);
        if wanted > image.size() {
            return Err(Error::ImageShort { size: image.size(), wanted });
        }
        Ok(Self {
            checking: Checking::of(&image),
            uffd,
            image,
            areas: area::all(regions, &state),
            epochs: Epochs::of(&state).map_err(|source| Error::State { source })?,
            faults: VecDeque::new(),
            around: Ahead::new(AROUND / page_size() as u64),
            refills: Ahead::new(REFILLED),
            plan: Plan::default(),
            recorder: None,
            replay: None,
            scratch: Scratch::default(),
            seen: Seen::of(&state),
            state,
            poisoned: Vec::new(),
            lost_ahead: None,
            told_of_lost: false,
            short_of_memory: None,
        })
    }

    /// What to load before it is asked for.
    pub fn plan(&mut self, prefetch: Prefetch, recorded: Vec<std::ops::Range<u64>>) {
        self.plan = Plan::new(prefetch, recorded);
    }

    /// Tells from now on how loading a working set goes.
    pub(crate) fn replay(&mut self, replay: Replay) {
        self.replay = Some(replay);
    }

    /// The build of the image, if it has one.
    pub(crate) fn build(&self) -> Option<uuid::Uuid> {
        self.image.build()
    }

    /// What a fault has taken so far: the median.
    pub(crate) fn latency(&self) -> Duration {
        self.seen.latencies.median()
    }

    /// Notes the pages that are asked for from now on.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// The recorder, if it has seen enough at this time.
    pub fn recorded(&mut self, now: Instant) -> Option<Recorder> {
        self.recorder.take_if(|recorder| recorder.is_over(now))
    }

    /// The recorder as it is, if there is one.
    pub fn take_recorder(&mut self) -> Option<Recorder> {
        self.recorder.take()
    }

    /// Whether pages are being noted.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Reads events to the last. Faults are queued; discards are applied at once, so that everything done afterwards knows
    /// of them.
    ///
    /// # Errors
    /// What reading said.
    pub fn drain(&mut self) -> Result<(), Error> {
        let Self { uffd, state, areas, epochs, faults, seen, .. } = self;
        let epoch = epochs.now();
        let mut read = None;
        let done = uffd.drain_into(state.messages(), |event| match event {
            Event::Fault { address, write } => {
                state.add(Counter::Faults, 1);
                // One look at the clock for all that one call read.
                faults.push_back(Fault { address, write, read: *read.get_or_insert_with(Instant::now) });
            }
            event => apply(event, state, areas, epoch, seen),
        });
        done.map_err(|source| Error::Events { source })
    }

    /// Answers the faults read so far, in their order. Call [`Engine::drain`] first.
    ///
    /// # Errors
    /// When a page cannot be filled: its VM would hang.
    pub fn serve(&mut self) -> Result<Step, Error> {
        match self.state.count(Counter::Refused) {
            0 => {}
            MOVED => return Err(Error::Event { what: "moved to another address (mremap)".into() }),
            _ => return Err(Error::Event { what: "was copied by a fork".into() }),
        }
        while let Some(&fault) = self.faults.front() {
            let address = fault.address;
            let place =
                self.areas.iter().enumerate().find_map(|(index, area)| Some((index, area.page_of(address)?)));
            let Some((index, page)) = place else {
                return Err(Error::Event { what: format!("faulted at {address:#x}, outside every region") });
            };
            let came = match self.areas[index].settled.has(page) {
                // One more who waits for what nobody can give.
                true if self.areas[index].poisoned.has(page) => self.poison_again(index, page),
                true => self.refill(index, page),
                false => self.fetch(index, page),
            };
            let came = match came {
                Err(Error::ImageLost { page: lost, source }) => self.poison(index, page, lost, source)?,
                came => came?,
            };
            match came.step {
                Step::Done | Step::More => self.faults.pop_front(),
                stopped => return Ok(stopped),
            };
            let area = &self.areas[index];
            if let Some(replay) = &mut self.replay
                && matches!(came.kind, Kind::Image | Kind::Zero)
            {
                replay.asked(area.offset_of(page), fault.read);
            }
            self.seen.answered(&fault, came.kind, area.offset_of(page), came.pages * area.region.page_size);
        }
        Ok(Step::Done)
    }

    /// Loads the next pages of the plan, at most `data` bytes from the image. Call it only when no fault waits.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn prefetch(&mut self, data: u64) -> Result<Step, Error> {
        // Zeros cost about a fiftieth of what copies do.
        let limit = Limit { data, zeros: data.saturating_mul(16) };
        let next = self.plan.next(&self.areas);
        if let Some(replay) = self.replay.as_mut().filter(|_| next.as_ref().is_none_or(|next| !next.recorded))
        {
            replay.done();
        }
        let Some(Target { area: index, pages, recorded }) = next else { return Ok(Step::Done) };
        let (first, began) = (pages.start, self.seen.begin());
        let came = match self.fill(index, pages.clone(), limit) {
            // Nobody has asked for it, and maybe nobody ever does.
            Err(Error::ImageLost { page, .. }) => {
                let page_size = self.areas[index].region.page_size;
                let tried = (data / page_size).max(1).min(pages.end - first);
                self.plan.pass_over(&self.areas, index, first + tried);
                self.lost_ahead.get_or_insert(page);
                return Ok(Step::More);
            }
            came => came?,
        };
        if matches!(came.kind, Kind::Image | Kind::Zero) {
            let (area, kind) = (&self.areas[index], if recorded { Kind::Replay } else { Kind::Prefetch });
            let bytes = came.pages * area.region.page_size;
            self.state.add(Counter::Prefetched, came.pages);
            self.state.add(Counter::PrefetchedBytes, bytes);
            self.seen.loaded(began, kind, area.offset_of(first), bytes);
            if let Some(replay) = self.replay.as_mut().filter(|_| recorded) {
                replay.loaded(bytes);
            }
        }
        if self.short_of_memory.take().is_some() {
            // Nobody waits for these pages: leave the memory to who does.
            self.plan = Plan::default();
            return Ok(Step::Done);
        }
        Ok(came.step)
    }

    /// Gives the VMM its memory back: what is still missing was discarded, and reads as zeros from now on without this
    /// server. Only when [`Engine::missing`] says 0.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn release(&mut self) -> Result<(), Error> {
        for area in &self.areas {
            let Region { address, size, offset, .. } = area.region;
            match self.uffd.unregister(address, size).map_err(|error| (error.raw_os_error(), error)) {
                // ENOMEM: the process has no memory left, it has ended. EINVAL: nothing is mapped there any more.
                Ok(()) | Err((Some(ENOMEM | EINVAL), _)) => {}
                Err((_, source)) => return Err(Error::Fill { offset, source }),
            }
        }
        // A discard that began before is still to be read, or its caller would wait for ever. As long as there is one, the
        // kernel refuses to fill even what is not registered.
        let Some(first) = self.areas.first().map(|area| area.region) else { return Ok(()) };
        loop {
            self.drain()?;
            match self.uffd.zero(first.address, first.page_size) {
                Filled::Again => readable(&self.uffd, Duration::from_millis(1)),
                _ => return Ok(()),
            }
            .map_err(|source| Error::Events { source })?;
        }
    }
}

/// Applies what has happened to the memory. To apply a discard twice is the same as once, as long as nothing was filled
/// between.
fn apply(event: Event, state: &State, areas: &mut [Area], epoch: u32, seen: &mut Seen) {
    match event {
        Event::Fault { .. } => {}
        Event::Remove { start, end } => areas.iter_mut().for_each(|area| {
            let pages = area.pages_of(start, end);
            seen.removed(area.offset_of(pages.start), (pages.end - pages.start) * area.region.page_size);
            area.discard(pages, epoch);
        }),
        // It is the VMM's own doing that nobody can reach these pages any more.
        Event::Unmap { start, end } => areas.iter_mut().for_each(|area| {
            let pages = area.pages_of(start, end);
            area.settled.insert(pages);
        }),
        Event::Remap => state.set(Counter::Refused, MOVED),
        Event::Fork => state.set(Counter::Refused, COPIED),
    }
}

#[cfg(test)]
#[path = "tests/takeover.rs"]
mod tests;
