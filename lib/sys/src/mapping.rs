//! Files mapped into memory, read-only.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// A whole file, readable as a slice. Reading it copies nothing.
///
/// A mapped file must keep its length: reading past an end that moved raises SIGBUS. It is for files that are never
/// changed once they have their name (published snapshots) or that belong to this process alone.
#[derive(Debug)]
pub struct Mapping(Option<memmap2::Mmap>);

impl Mapping {
    /// Maps the file as long as it is now. An empty file maps to an empty slice.
    ///
    /// # Errors
    /// What `mmap(2)` said.
    pub fn of(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the map is private to this value and only read through `&[u8]`. That the bytes do not change and the
        // file does not shrink meanwhile is the rule for the files this is used on (see the type's comment).
        unsafe { memmap2::Mmap::map(file) }.map(|map| Self(Some(map)))
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
