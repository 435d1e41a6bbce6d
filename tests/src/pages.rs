//! A memory image whose pages are all different, and how it looks on disk.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// What such an image holds on this page: every fifth is a hole, every seventh holds zeros that are stored.
pub fn content(page: usize) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    if !page.is_multiple_of(5) && !page.is_multiple_of(7) {
        for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&((page as u64) << 32 | index as u64 | 1 << 63).to_le_bytes());
        }
    }
    bytes
}

/// Makes an image of so many pages of an empty file.
///
/// # Panics
/// When it cannot be written.
pub fn write(file: &File, pages: usize) {
    file.set_len((pages * PAGE) as u64).expect("its length");
    for page in (0..pages).filter(|page| !page.is_multiple_of(5)) {
        file.write_all_at(&content(page), (page * PAGE) as u64).expect("a page");
    }
}
