//! A VM's memory: accesses that may wait for the server, and what they must find.

use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sys::process::readable;
use sys::uffd::{Filled, Memory, Uffd};

use super::model::Model;
use super::scenario::{Layout, Unmet};
use super::stage::Stage;
use super::waits::{self, during};

/// Memory that waits to be filled. Pages are numbered through all regions.
pub(crate) struct Vm {
    pub memory: Memory,
    pub uffd: Arc<Uffd>,
    pub page_size: usize,
    model: Model,
    layout: Layout,
    limit: Duration,
    /// Kept open as long as the VM lives, as Firecracker does.
    stream: Option<UnixStream>,
}

impl Vm {
    /// Maps and registers memory as the scenario has it.
    pub fn new(stage: &Stage) -> Result<Self, Unmet> {
        let layout = stage.scenario.layout;
        let page_size = layout.page_size;
        let memory =
            Memory::map(layout.mapped() * page_size, layout.is_huge()).map_err(|error| {
                match layout.is_huge() {
                    true => {
                        Unmet::Skipped(format!("this host gives no {} huge pages: {error}", layout.mapped()))
                    }
                    false => error.into(),
                }
            })?;
        let uffd = Arc::new(Uffd::create()?);
        waits::watch(Arc::downgrade(&uffd));
        let vm =
            Self { memory, uffd, page_size, model: stage.model, layout, limit: stage.limit, stream: None };
        for (start, pages, _) in vm.regions() {
            vm.uffd.register(&vm.memory, start * page_size, pages * page_size)?;
        }
        Ok(vm)
    }

    /// The same, connected.
    pub fn over(mut self, stream: UnixStream) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Each region's first page of the mapping, its pages, its first page of the image.
    fn regions(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let spans = self.layout.regions;
        spans.iter().scan(0, |next, span| {
            let start = *next;
            *next += span.pages + span.gap;
            Some((start, span.pages, span.at))
        })
    }

    /// The handshake's text, with the size of a page under these keys.
    pub fn message(&self, page_size: &[&str]) -> String {
        let region = |(start, pages, at): (usize, usize, usize)| {
            let mut region = json!({"base_host_virt_addr": self.memory.address() + (start * self.page_size) as u64,
                                    "size": pages * self.page_size, "offset": at * self.page_size});
            for key in page_size {
                region[*key] = self.page_size.into();
            }
            region
        };
        Value::Array(self.regions().map(region).collect()).to_string()
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.layout.regions.iter().map(|span| span.pages).sum()
    }

    /// Where a page lies in the mapping, in bytes.
    pub fn offset(&self, page: usize) -> usize {
        self.place(page).0 * self.page_size
    }

    /// A page's number in the mapping, and in the image.
    fn place(&self, page: usize) -> (usize, usize) {
        let mut before = 0;
        for (start, pages, at) in self.regions() {
            if page < before + pages {
                return (start + page - before, at + page - before);
            }
            before += pages;
        }
        unreachable!("page {page} of {}", self.pages())
    }

    /// What the image holds on a page.
    pub fn image(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.page_size];
        self.model.fill((self.place(page).1 * self.page_size) as u64, &mut bytes);
        bytes
    }

    /// The pages that the image does not leave zero: on these old content is seen.
    pub fn telling(&self) -> impl DoubleEndedIterator<Item = usize> {
        (0..self.pages()).filter(|&page| self.image(page).iter().any(|&byte| byte != 0))
    }

    /// Reads a page, waiting until it is filled.
    pub fn read(&self, page: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.page_size];
        during("a read of", page..page + 1, || self.memory.read(self.offset(page), &mut bytes));
        bytes
    }

    /// Writes a page's first byte, waiting until it is filled.
    pub fn write(&self, page: usize, value: u8) {
        during("a write to", page..page + 1, || self.memory.store(self.offset(page), value));
    }

    /// Discards pages, as a balloon does.
    pub fn discard(&self, pages: Range<usize>) -> Result<(), Unmet> {
        let mut next = pages.start;
        while next < pages.end {
            // As many as follow each other in the mapping.
            let start = self.place(next).0;
            let end = (next + 1..pages.end).find(|&page| self.place(page).0 != start + page - next);
            let run = next..end.unwrap_or(pages.end);
            next = run.end;
            let (offset, length) = (start * self.page_size, run.len() * self.page_size);
            during("a discard of", run, || self.memory.discard(offset, length))?;
        }
        Ok(())
    }

    /// This page must hold these bytes, because of `why`.
    pub fn expect(&self, page: usize, expected: &[u8], why: &str) -> Result<(), Unmet> {
        let found = self.read(page);
        self.compare(page, &found, expected, why)
    }

    /// These bytes were found on this page.
    pub fn compare(&self, page: usize, found: &[u8], expected: &[u8], why: &str) -> Result<(), Unmet> {
        let Some(first) = (0..found.len()).find(|&at| found[at] != expected[at]) else { return Ok(()) };
        let image = self.image(page);
        let called = |bytes: &[u8]| match () {
            () if bytes.iter().all(|&byte| byte == 0) => "zeros".to_owned(),
            () if bytes == image => "the image's content".to_owned(),
            () => format!("{:#04x} at byte {first}", bytes[first]),
        };
        let offset = self.place(page).1 * self.page_size;
        let (found, expected) = (called(found), called(expected));
        let wrong = format!(
            "page {page} (offset {offset:#x} of the image): found {found}, expected {expected}: {why}"
        );
        waits::found_wrong(&wrong);
        Err(Unmet::Failed(wrong))
    }

    /// This page must be as in the image.
    pub fn expect_image(&self, page: usize) -> Result<(), Unmet> {
        self.expect(page, &self.image(page), "it was neither written nor discarded")
    }

    /// These pages must be as in the image.
    pub fn expect_images(&self, pages: impl IntoIterator<Item = usize>) -> Result<(), Unmet> {
        pages.into_iter().try_for_each(|page| self.expect_image(page))
    }

    /// This page must be as in the image, but for a first byte that was written.
    pub fn expect_written(&self, page: usize, value: u8) -> Result<(), Unmet> {
        let mut expected = self.image(page);
        expected[0] = value;
        self.expect(page, &expected, "its first byte was written, and nothing else")
    }

    /// These pages must be zeros.
    pub fn expect_zeros(&self, pages: impl IntoIterator<Item = usize>) -> Result<(), Unmet> {
        let zeros = vec![0; self.page_size];
        pages.into_iter().try_for_each(|page| self.expect(page, &zeros, "it was discarded"))
    }

    /// Waits until so many faults wait. The kernel tells only of the first: the others are counted again and again.
    pub fn await_faults(&self, count: usize) -> Result<(), Unmet> {
        self.until("faults do not arrive at the userfaultfd", || Ok(self.uffd.waiting()?.faults >= count))
    }

    /// Waits until there is something to read at the userfaultfd.
    pub fn await_message(&self) -> Result<(), Unmet> {
        match readable(&*self.uffd, self.limit)? {
            true => Ok(()),
            false => Err(Unmet::failed("the kernel never told of a discard")),
        }
    }

    /// Waits until a discard waits to be read, while a fault may wait, too: as long as one does the kernel refuses to fill
    /// anything. This fills `page` meanwhile, for which nobody must be waiting.
    pub fn await_discard(&self, page: usize) -> Result<(), Unmet> {
        let address = self.memory.address() + self.offset(page) as u64;
        let bytes = self.image(page);
        let begun = || match self.uffd.copy_quietly(address, &bytes) {
            Filled::Again => Ok(true),
            Filled::Bytes(_) | Filled::Exists => Ok(false),
            other => Err(io::Error::other(format!("page {page} cannot be filled: {other:?}"))),
        };
        self.until("the kernel never began a discard", begun)
    }

    fn until(&self, never: &str, mut done: impl FnMut() -> io::Result<bool>) -> Result<(), Unmet> {
        let deadline = Instant::now() + self.limit;
        while !done()? {
            if Instant::now() >= deadline {
                return Err(Unmet::failed(never));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}
