//! What a scenario is.

use std::io;

use super::model::GRAIN;
use super::stage::Stage;

/// One thing that a server must get right.
pub(crate) struct Scenario {
    pub name: &'static str,
    /// One line: what must hold.
    pub must: &'static str,
    pub layout: Layout,
    pub ending: Ending,
    /// Whether the source of memory is cut short before the server starts.
    pub cut: bool,
    /// The VMM's part.
    pub play: fn(&Stage) -> Result<(), Unmet>,
}

impl Scenario {
    /// The usual one, for `..` in a table.
    pub const fn new(name: &'static str, must: &'static str, play: fn(&Stage) -> Result<(), Unmet>) -> Self {
        Self { name, must, layout: Layout::SMALL, ending: Ending::Played, cut: false, play }
    }
}

/// How a scenario ends when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The VMM plays its part to the end, and lives.
    Played,
    /// The VMM is killed when it says so, and the server ends or takes another VMM.
    Killed,
    /// The VMM has said something that is no handshake; the server ends or takes another VMM. It may stop this one.
    Refused,
    /// As `Played`; or the server refuses to start, stops the VMM, or has the access end in SIGBUS.
    Stopped,
}

/// What the VMM's memory looks like, in pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub regions: &'static [Span],
    /// Bytes of a page.
    pub page_size: usize,
    /// Pages of the image.
    pub image: usize,
}

/// One region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub pages: usize,
    /// Pages after it that belong to no region.
    pub gap: usize,
    /// Where in the image it begins.
    pub at: usize,
}

impl Layout {
    /// 8 MiB in one region.
    pub const SMALL: Self =
        Self { regions: &[Span { pages: 2048, gap: 0, at: 0 }], page_size: GRAIN, image: 2048 };
    /// 64 MiB in one region: loading it takes a while.
    pub const LARGE: Self =
        Self { regions: &[Span { pages: 16384, gap: 0, at: 0 }], page_size: GRAIN, image: 16384 };

    /// Pages that are mapped, those between the regions included.
    pub fn mapped(&self) -> usize {
        self.regions.iter().map(|span| span.pages + span.gap).sum()
    }

    /// Bytes of the image.
    pub fn image_bytes(&self) -> u64 {
        (self.image * self.page_size) as u64
    }

    pub fn is_huge(&self) -> bool {
        self.page_size > GRAIN
    }
}

/// Why a VMM did not play to the end.
#[derive(Debug)]
pub(crate) enum Unmet {
    /// What must hold did not.
    Failed(String),
    /// This host cannot do it.
    Skipped(String),
}

impl Unmet {
    pub fn failed(why: impl Into<String>) -> Self {
        Self::Failed(why.into())
    }
}

/// A call of the VMM's that the kernel refused: in these scenarios it never has a reason to.
impl From<io::Error> for Unmet {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("the VMM's own call failed: {error}"))
    }
}
