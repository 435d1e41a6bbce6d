//! Huge pages of 2 MiB for a scenario: those that are free, or as many more as are needed for as long as it takes.

use std::fs;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Keeps so many pages in the pool; puts the pool's size back when it goes.
#[derive(Debug)]
pub(crate) struct Reserved {
    before: Option<usize>,
}

impl Reserved {
    /// Makes sure that `pages` are free.
    ///
    /// # Errors
    /// Why there are none, for people.
    pub fn new(pages: usize) -> Result<Self, String> {
        let free = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
        if free >= pages {
            return Ok(Self { before: None });
        }
        let before = read("nr_hugepages")?;
        let wanted = before + pages - free;
        fs::write(format!("{POOL}/nr_hugepages"), wanted.to_string())
            .map_err(|error| format!("{free} huge pages of 2 MiB are free, {pages} are needed: {error}"))?;
        let reserved = Self { before: Some(before) };
        match read("nr_hugepages")? {
            got if got >= wanted => Ok(reserved),
            got => Err(format!("this host gives {got} huge pages of 2 MiB, {wanted} are needed")),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = fs::write(format!("{POOL}/nr_hugepages"), before.to_string())
        {
            log::warn!("{POOL}/nr_hugepages was {before} before, and cannot be put back: {error}");
        }
    }
}

fn read(name: &str) -> Result<usize, String> {
    let text = fs::read_to_string(format!("{POOL}/{name}"))
        .map_err(|error| format!("this kernel has no huge pages of 2 MiB: {error}"))?;
    text.trim().parse().map_err(|_| format!("{POOL}/{name} is {text:?}"))
}
