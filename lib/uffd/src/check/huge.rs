//! Huge pages of 2 MiB for a scenario: those that are free, and as many more as it needs for as long as it takes.

use std::fs::{self, File};

use nix::fcntl::{Flock, FlockArg};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// How many pages the kernel may give beyond the pool: such a page goes again with its mapping, so the pool stays as it is.
const LIMIT: &str = "nr_overcommit_hugepages";

/// Lets so many pages be had; puts the kernel's limit back when it goes.
#[derive(Debug)]
pub(crate) struct Allowed {
    before: Option<usize>,
    /// Two who each put back what they found would leave something behind: one after the other.
    _turn: Flock<File>,
}

impl Allowed {
    /// Makes sure that the kernel would give `pages`, if it has the memory.
    ///
    /// # Errors
    /// Why it would not, for people.
    pub fn new(pages: usize) -> Result<Self, String> {
        let pool =
            File::open(POOL).map_err(|error| format!("this kernel has no huge pages of 2 MiB: {error}"))?;
        let turn = Flock::lock(pool, FlockArg::LockExclusive).map_err(|(_, errno)| errno.to_string())?;
        let free = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
        let before = read(LIMIT)?;
        let limit = read("surplus_hugepages")? + pages.saturating_sub(free);
        if free >= pages || before >= limit {
            return Ok(Self { before: None, _turn: turn });
        }
        fs::write(format!("{POOL}/{LIMIT}"), limit.to_string())
            .map_err(|error| format!("{free} huge pages of 2 MiB are free, {pages} are needed: {error}"))?;
        Ok(Self { before: Some(before), _turn: turn })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = fs::write(format!("{POOL}/{LIMIT}"), before.to_string())
        {
            log::warn!("{POOL}/{LIMIT} was {before} before, and cannot be put back: {error}");
        }
    }
}

fn read(name: &str) -> Result<usize, String> {
    let text =
        fs::read_to_string(format!("{POOL}/{name}")).map_err(|error| format!("{POOL}/{name}: {error}"))?;
    text.trim().parse().map_err(|_| format!("{POOL}/{name} is {text:?}"))
}
