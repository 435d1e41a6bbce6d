//! Memory as a VMM writes it, one plain file without a header: what a header of it would say.

use std::fs::File;
use std::path::Path;

use uuid::Uuid;

use crate::Error;
use crate::directory::{self, regular_length};
use crate::header::{self, BLOCK_SIZES, Header, Record};
use crate::spans::{Source, Spans};

/// The header of the plain memory file in `dir`: a full image of one build, whose file it is. Its holes are zeros.
///
/// # Errors
/// `not_found` when there is no such file either, `corrupt` when it is not whole blocks; what the kernel said.
pub fn header(dir: &Path, block_size: Option<u64>) -> Result<Header, Error> {
    let none = || Error::NoSnapshot { dir: dir.to_owned() };
    let path = directory::plain_paths(dir).find(|path| path.is_file()).ok_or_else(none)?;
    let file = File::open(&path).map_err(Error::io("open", &path))?;
    let size = regular_length(&file, &path)?;
    let block_size = block_size.unwrap_or(BLOCK_SIZES[0]);
    if size == 0 || !size.is_multiple_of(block_size) {
        return Err(Error::Plain { path, bytes: size, block_size });
    }
    let build = Uuid::new_v4();
    let mut records = Vec::new();
    for span in Spans::full(&file, &path, size)?.blocks(block_size) {
        let (offset, length) = (span.range.start, span.range.end - span.range.start);
        let (build, storage_offset) =
            if span.source == Source::Zero { (Uuid::nil(), 0) } else { (build, offset) };
        header::push(&mut records, Record { offset, length, build, storage_offset });
    }
    Ok(Header { block_size, size, generation: 0, build, base_build: build, records })
}
