//! The guest's memory: where it comes from, what was written to it, and how it is written to a file.

mod discard;
mod dump;
mod error;
mod map;
mod page_server;
mod page_set;

use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub use dump::{Dumped, Kind};
pub use error::Error;
pub use page_server::Watch;

use page_server::PageServer;
use page_set::PageSet;

/// Size of a page, bytes: the unit of dirty logs and snapshots.
pub const PAGE: u64 = 4096;

/// The guest's memory as devices see it. A write through it marks the page in its region's bitmap: the devices' dirty log.
/// Cheap to clone.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

/// Takes memory that the guest gave up back to the host.
pub trait Discard: Send + Sync {
    /// Discards a range, page-aligned: it reads as zeros from here on, its pages count as written, and a page server
    /// that the memory is registered with is told by a REMOVE.
    ///
    /// # Errors
    /// What the kernel said; `InvalidInput` for a range that is not all memory.
    fn discard(&self, address: u64, bytes: u64) -> std::io::Result<()>;
}

/// All of the guest's memory. An offset is a place in its image: the regions, one after another.
pub struct Ram {
    memory: GuestMemory,
    bytes: u64,
    backing: Backing,
    /// Written since the last dump, the load or the boot.
    changed: PageSet,
    /// Written between the last dump and the one before.
    last: PageSet,
    /// Discarded at some time. Such a page that is missing is zero; any other that is missing is the page server's.
    discarded: Arc<AtomicBitmap>,
}

/// What is behind the memory.
enum Backing {
    /// A file of this process's own, without a name; a page server fills what is missing in it, if there is one.
    Own(File, Option<PageServer>),
    /// A private mapping of a memory file: pages that were never written are the file's.
    File,
}

impl Ram {
    /// Memory of `bytes` zeros, a whole number of MiB.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn fresh(bytes: u64) -> Result<Self, Error> {
        let (memory, file) = map::fresh(bytes)?;
        Ok(Self::new(memory, bytes, Backing::Own(file, None)))
    }

    /// Memory whose pages come from the page server that listens at `socket`, when they are first touched.
    ///
    /// # Errors
    /// What kept the server from being reached, or the memory from being handed to it.
    pub fn served(bytes: u64, socket: &Path) -> Result<Self, Error> {
        let server = page_server::connect(socket)?;
        let (memory, file) = map::fresh(bytes)?;
        let server = server.hand_over(&memory)?;
        Ok(Self::new(memory, bytes, Backing::Own(file, Some(server))))
    }

    /// Memory as it is in a memory file, which must not change from here on. What the guest writes stays out of it.
    ///
    /// # Errors
    /// That the file cannot be read or is of another size.
    pub fn of_file(bytes: u64, path: &Path) -> Result<Self, Error> {
        let memory = map::of_file(bytes, path)?;
        Ok(Self::new(memory, bytes, Backing::File))
    }

    fn new(memory: GuestMemory, bytes: u64, backing: Backing) -> Self {
        let none = PageSet::empty(bytes / PAGE);
        let page = NonZeroUsize::new(PAGE as usize).expect("a page is not empty");
        let discarded = Arc::new(AtomicBitmap::new(bytes as usize, page));
        Self { memory, bytes, backing, changed: none.clone(), last: none, discarded }
    }

    /// The memory as devices see it.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Takes memory back from the guest.
    pub fn discard(&self) -> Arc<dyn Discard> {
        let own = matches!(self.backing, Backing::Own(..));
        Arc::new(discard::Discarder::new(&self.memory, own, self.discarded.clone()))
    }

    /// Notices a page server that leaves without having taken the memory, for as long as the value lives. `None` where
    /// there is no page server.
    ///
    /// # Errors
    /// That there is no thread to be had.
    pub fn watch(&self) -> Result<Option<Watch>, Error> {
        self.server().map(|server| server.watch(&self.memory)).transpose()
    }

    /// Adds what was written since the last call: `vcpus` is KVM's log by region, `None` if there is none, and then every
    /// page counts as written. Nobody may write meanwhile.
    pub fn note_written(&mut self, vcpus: Option<&[Vec<u64>]>) {
        let mut first = 0;
        for (index, region) in self.memory.iter().enumerate() {
            self.changed.insert_words(first, &region.get_mmap().bitmap().get_and_reset());
            if let Some(words) = vcpus.and_then(|logs| logs.get(index)) {
                self.changed.insert_words(first, words);
            }
            first += region.len() / PAGE;
        }
        if vcpus.is_none() {
            self.changed.fill();
        }
    }

    /// Forgets the pages of the dump before the one that just succeeded. Its own are kept and written again by the next
    /// Diff: if this dump is lost, nothing else is.
    pub fn forget_written(&mut self) {
        let empty = PageSet::empty(self.bytes / PAGE);
        self.last = std::mem::replace(&mut self.changed, empty);
    }

    fn server(&self) -> Option<&PageServer> {
        match &self.backing {
            Backing::Own(_, server) => server.as_ref(),
            Backing::File => None,
        }
    }
}

#[cfg(test)]
mod tests;
