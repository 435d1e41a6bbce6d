//! A VM as its guardian knows it.

use snap::Image;
use sys::process::Process;
use sys::uffd::Uffd;

use crate::orders::Handed;
use crate::state::{Counter, State};
use crate::{Engine, Error, Region};

/// A VM that is served.
pub(super) struct Vm {
    pub peer: Process,
    /// The how manieth it is.
    pub client: u64,
    pub handed: Handed,
    pub state: State,
    pub regions: Vec<Region>,
}

impl Vm {
    /// How many pages it has been given.
    pub fn filled(&self) -> u64 {
        self.state.count(Counter::Copied) + self.state.count(Counter::Zeroed)
    }

    /// Gives it its memory back, if it is all there. Only when its server is gone. Gives whether it did.
    pub fn release(self) -> Result<bool, Error> {
        let uffd = Uffd::from_fd(self.handed.uffd).map_err(|source| Error::State { source })?;
        let nothing = Image::zeros(Region::end_of(&self.regions));
        let mut engine = Engine::resume(uffd, nothing.into(), &self.regions, self.state)?;
        engine.drain()?;
        let complete = engine.missing() == 0;
        if complete {
            engine.release()?;
        }
        Ok(complete)
    }
}
