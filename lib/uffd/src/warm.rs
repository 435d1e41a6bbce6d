//! Bringing the image into memory, ahead of the copies from it.

use std::sync::{Arc, Weak};

use snap::{Content, Image};

/// How much is brought in at once.
const AT_ONCE: u64 = 4 << 20;

/// Begins to bring the image into memory and into this process's page table, in a thread of its own: copies from it then find
/// it there without waiting for a disk or for a fault of their own. It ends with the image.
pub(crate) fn begin(image: &Arc<Image>) {
    let image = Arc::downgrade(image);
    std::thread::spawn(move || warm(&image));
}

fn warm(image: &Weak<Image>) {
    let mut at = 0;
    while let Some(image) = image.upgrade().filter(|image| at < image.size()) {
        let extent = image.extent_at(at);
        let end = extent.end().min(at + AT_ONCE);
        if let Content::Data(bytes) = extent.content {
            sys::uffd::populate(&bytes[(at - extent.offset) as usize..(end - extent.offset) as usize]);
        }
        at = end;
    }
}
