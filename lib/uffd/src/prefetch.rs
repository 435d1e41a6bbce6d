//! What to load before it is asked for: first what a recording says, then everything.

use std::collections::VecDeque;
use std::ops::Range;

use crate::area::Area;

/// What to load ahead of the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefetch {
    /// A recorded working set if there is one, then the rest.
    All,
    /// A recorded working set, nothing else.
    Recorded,
    /// Nothing.
    None,
}

impl Prefetch {
    /// The words for it in a request.
    pub const WORDS: &'static [&'static str] = &["all", "recorded", "none"];

    /// The value of that name.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::All, Self::Recorded, Self::None].into_iter().find(|prefetch| prefetch.word() == word)
    }

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Recorded => "recorded",
            Self::None => "none",
        }
    }
}

/// What is left to load, in order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    recorded: VecDeque<Range<u64>>,
    /// Where to go on in the memory as a whole: area and page.
    rest: Option<(usize, u64)>,
}

/// Pages to load next. None of them is settled.
pub(crate) struct Target {
    pub area: usize,
    pub pages: Range<u64>,
    /// Whether a recording says so.
    pub recorded: bool,
}

impl Plan {
    /// `recorded` are ranges of the image, in bytes.
    pub fn new(prefetch: Prefetch, recorded: Vec<Range<u64>>) -> Self {
        match prefetch {
            Prefetch::None => Self::default(),
            Prefetch::Recorded => Self { recorded: recorded.into(), rest: None },
            Prefetch::All => Self { recorded: recorded.into(), rest: Some((0, 0)) },
        }
    }

    /// Leaves out what comes before this page of the area, as it cannot be loaded.
    pub fn pass_over(&mut self, areas: &[Area], area: usize, page: u64) {
        let end = areas[area].offset_of(page);
        match self.recorded.front_mut() {
            Some(range) if range.end > end => range.start = end,
            Some(_) => drop(self.recorded.pop_front()),
            None => self.rest = Some((area, page)),
        }
    }

    /// What to load next. The same again as long as it is not settled.
    pub fn next(&mut self, areas: &[Area]) -> Option<Target> {
        while let Some(range) = self.recorded.front() {
            let target = areas.iter().enumerate().find_map(|(area, this)| {
                let pages = this.unsettled(pages_of_image(this, range))?;
                Some(Target { area, pages, recorded: true })
            });
            match target {
                Some(target) => return Some(target),
                None => self.recorded.pop_front(),
            };
        }
        let (area, page) = self.rest.as_mut()?;
        while let Some(this) = areas.get(*area) {
            if let Some(pages) = this.unsettled(*page..this.region.pages()) {
                *page = pages.start;
                return Some(Target { area: *area, pages, recorded: false });
            }
            (*area, *page) = (*area + 1, 0);
        }
        self.rest = None;
        None
    }
}

/// The pages of an area that hold any of these bytes of the image.
fn pages_of_image(area: &Area, range: &Range<u64>) -> Range<u64> {
    let region = &area.region;
    let within = |offset: u64| offset.clamp(region.offset, region.offset_end()) - region.offset;
    within(range.start) / region.page_size..within(range.end).div_ceil(region.page_size)
}
