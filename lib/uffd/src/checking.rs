//! Comparing what is loaded with its checksums before the VMM gets it, each stored run once.

use std::ops::Range;

use snap::{Checked, Image};

/// What is known of an image's blocks.
#[derive(Debug)]
pub(crate) struct Checking {
    /// Which blocks need not be looked at any more: they are what was stored, or there is no checksum of them.
    passed: Vec<bool>,
    block_size: u64,
    scratch: Vec<u8>,
}

impl Checking {
    /// For an image that has its checksums with it; `None` for another.
    pub fn of(image: &Image) -> Option<Self> {
        let (block_size, scratch) = (image.block_size(), Vec::new());
        let passed = || vec![false; (image.size() / block_size) as usize];
        image.is_checked().then(|| Self { passed: passed(), block_size, scratch })
    }

    /// Looks at these bytes of memory, and at all that has a checksum together with them.
    ///
    /// # Errors
    /// The first offset that is not what was stored.
    pub fn check(&mut self, image: &Image, range: Range<u64>) -> Result<(), u64> {
        let mut at = range.start;
        while at < range.end {
            let block = at / self.block_size;
            if self.passed[block as usize] {
                at = (block + 1) * self.block_size;
                continue;
            }
            match image.check_run(at, &mut self.scratch) {
                Checked::Wrong(_) => return Err(at),
                Checked::Good(run) | Checked::Unknown(run) => {
                    let blocks = run.start.div_ceil(self.block_size)..run.end / self.block_size;
                    if blocks.start < blocks.end {
                        self.passed[blocks.start as usize..blocks.end as usize].fill(true);
                    }
                    at = run.end.max((block + 1) * self.block_size);
                }
            }
        }
        Ok(())
    }
}
