//! Filling pages: what belongs there, and what the kernel says to it.

use std::time::Instant;

use nix::errno::Errno;
use snap::Content;
use sys::uffd::Filled;

use super::{AROUND, Came, Engine, OUT_OF_MEMORY, SMALLEST, Step};
use crate::Error;
use crate::area::{Fill, Limit};
use crate::error::LostPage;
use crate::state::Counter;
use crate::trace::Kind;

impl Engine {
    /// Fills a page with what the image has there, and those that follow in the same extent when somebody reads them in
    /// order: up to the next one that is settled, and none while pages are noted, as each must be asked for.
    pub(super) fn fetch(&mut self, index: usize, page: u64) -> Result<Came, Error> {
        if self.recorder.is_some() {
            let came = self.fill(index, page..page + 1, Limit { data: 0, zeros: 0 })?;
            let area = &self.areas[index];
            // Once it is there: until then it may be asked for again and again.
            if let Some(recorder) = self.recorder.as_mut().filter(|_| came.kind != Kind::Exists) {
                recorder.note(area.offset_of(page), area.region.page_size);
            }
            return Ok(came);
        }
        let area = &self.areas[index];
        let most = page + self.around.pages(index, page);
        let pages = area.unsettled(page..most.min(area.region.pages())).unwrap_or(page..page + 1);
        let came = match self.fill(index, pages.clone(), Limit { data: AROUND, zeros: AROUND }) {
            // Which of them? Those that nobody asks for are to harm nobody.
            Err(Error::ImageLost { .. }) if pages.end > page + 1 => {
                self.fill(index, page..page + 1, Limit { data: 0, zeros: 0 })?
            }
            came => came?,
        };
        self.around.filled(index, page, came.pages.max(1));
        self.state.add(Counter::Around, came.pages.saturating_sub(1));
        Ok(came)
    }

    /// Fills a discarded page with zeros, and discarded ones that follow when somebody reads them in order. Those that are
    /// there again stop the kernel, and stay as they are.
    pub(super) fn refill(&mut self, index: usize, page: u64) -> Result<Came, Error> {
        let area = &self.areas[index];
        let run = area.removed.next_outside(page).unwrap_or(area.region.pages());
        let end = run.min(page + self.refills.pages(index, page)).max(page + 1);
        let limit = Limit { data: 0, zeros: (end - page) * area.region.page_size };
        let came = self.fill(index, page..end, limit)?;
        self.refills.filled(index, page, came.pages.max(1));
        Ok(came)
    }

    /// Fills some of these pages, from the first on, and marks what is there now.
    pub(super) fn fill(
        &mut self,
        index: usize,
        pages: std::ops::Range<u64>,
        limit: Limit,
    ) -> Result<Came, Error> {
        self.check(index, &pages, limit)?;
        let Self { uffd, image, state, areas, epochs, scratch, .. } = self;
        let area = &mut areas[index];
        let (first, page_size) = (pages.start, area.region.page_size);
        let Fill { filled, from_image } = area.fill(uffd, image, pages, limit, scratch);
        let (count, kind) = match filled {
            Filled::Bytes(bytes) => {
                let count = bytes as u64 / page_size;
                let (pages, all) = match from_image {
                    true => (Counter::Copied, Counter::CopiedBytes),
                    false => (Counter::Zeroed, Counter::ZeroedBytes),
                };
                state.add(pages, count);
                state.add(all, bytes as u64);
                let kind = match (from_image, area.settled.has(first)) {
                    (true, _) => Kind::Image,
                    (false, false) => Kind::Zero,
                    (false, true) => {
                        // Settled and yet missing: maybe discarded without a word, by a VMM that did not ask for these
                        // events.
                        area.discard(first..first + count, epochs.now());
                        Kind::Refill
                    }
                };
                (count, kind)
            }
            Filled::Exists => {
                let woken = uffd.wake(area.address_of(first), page_size);
                woken.map_err(|source| Error::Fill { offset: area.offset_of(first), source })?;
                (1, Kind::Exists)
            }
            // Nobody can touch it any more; the kernel has woken who waited.
            Filled::Unmapped => (1, Kind::Unmapped),
            Filled::Again => return Ok(Came::nowhere(Step::Again)),
            Filled::Gone => return Ok(Came::nowhere(Step::Gone)),
            Filled::Failed(source) => return self.not_filled(index, first, source).map(Came::nowhere),
        };
        area.settled.insert(first..first + count);
        self.short_of_memory = None;
        Ok(Came { step: Step::More, kind, pages: count })
    }

    /// Compares what the image has for these pages, as much of it as `limit` takes, with its checksums.
    fn check(&mut self, index: usize, pages: &std::ops::Range<u64>, limit: Limit) -> Result<(), Error> {
        let Self { image, areas, checking: Some(checking), .. } = self else { return Ok(()) };
        let area = &areas[index];
        if area.settled.has(pages.start) {
            return Ok(());
        }
        let page_size = area.region.page_size;
        let start = area.offset_of(pages.start);
        // What is filled at once ends with the extent, or with a page that is made of several.
        let extent = image.extent_at(start).end().max(start + page_size);
        let end = area.offset_of(pages.end).min(start + limit.data.max(page_size)).min(extent);
        let wrong = match checking.check(image, start..end) {
            Ok(()) => return Ok(()),
            Err(wrong) => wrong,
        };
        let source = std::io::ErrorKind::InvalidData.into();
        match image.place_of(wrong) {
            Some(place) => Err(Error::ImageLost { page: LostPage { offset: wrong, place }, source }),
            None => Err(Error::Fill { offset: wrong, source }),
        }
    }

    fn not_filled(&mut self, index: usize, page: u64, source: std::io::Error) -> Result<Step, Error> {
        let offset = self.areas[index].offset_of(page);
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EFAULT) => match self.lost(index, page) {
                Some(page) => Err(Error::ImageLost { page, source }),
                None => Err(Error::Fill { offset, source }),
            },
            Some(Errno::ENOMEM) => {
                let since = *self.short_of_memory.get_or_insert_with(Instant::now);
                if since.elapsed() < OUT_OF_MEMORY {
                    Ok(Step::Again)
                } else {
                    Err(Error::Fill { offset, source })
                }
            }
            _ => Err(Error::Fill { offset, source }),
        }
    }

    /// The part of a page that the image does not give.
    fn lost(&self, index: usize, page: u64) -> Option<LostPage> {
        let area = &self.areas[index];
        let offset = area.offset_of(page);
        let pieces = self.image.pieces(offset, offset + area.region.page_size);
        let data = pieces.filter_map(|piece| match piece.content {
            Content::Data(bytes) => Some((piece.offset, bytes)),
            Content::Zero => None,
        });
        let mut chunks = data.flat_map(|(offset, bytes)| {
            bytes
                .chunks(SMALLEST)
                .enumerate()
                .map(move |(index, chunk)| (offset + (index * SMALLEST) as u64, chunk))
        });
        let unreadable = chunks.find(|(_, chunk)| sys::mapping::copy(chunk, &mut [0; SMALLEST]).is_err());
        let offset = unreadable.map_or(offset, |(offset, _)| offset);
        Some(LostPage { offset, place: self.image.place_of(offset)? })
    }

    /// Lets one more who waits for a poisoned page have SIGBUS.
    pub(super) fn poison_again(&mut self, index: usize, page: u64) -> Result<Came, Error> {
        let area = &self.areas[index];
        let (address, page_size) = (area.address_of(page), area.region.page_size);
        let failed = |source| Error::Fill { offset: area.offset_of(page), source };
        let kind = match self.uffd.poison(address, page_size) {
            Filled::Exists => {
                self.uffd.wake(address, page_size).map_err(failed)?;
                Kind::Poison
            }
            Filled::Bytes(_) => Kind::Poison,
            Filled::Unmapped => Kind::Unmapped,
            Filled::Again => return Ok(Came::nowhere(Step::Again)),
            Filled::Gone => return Ok(Came::nowhere(Step::Gone)),
            Filled::Failed(source) => return Err(failed(source)),
        };
        Ok(Came { step: Step::More, kind, pages: 1 })
    }

    /// Lets who asks for this page have SIGBUS rather than wait for ever or read what it never held. Where the kernel cannot
    /// do that, before 6.6, it is the error that it was.
    pub(super) fn poison(
        &mut self,
        index: usize,
        page: u64,
        lost: LostPage,
        source: std::io::Error,
    ) -> Result<Came, Error> {
        let area = &mut self.areas[index];
        // First: a server that dies in between leaves a page that is known to be lost, and is asked for again.
        [&mut area.poisoned, &mut area.settled].into_iter().for_each(|set| set.insert(page..page + 1));
        let (address, page_size) = (area.address_of(page), area.region.page_size);
        let poisoned = self.uffd.poison(address, page_size);
        if !matches!(poisoned, Filled::Bytes(_)) {
            area.poisoned.remove(page..page + 1);
        }
        let kind = match poisoned {
            Filled::Bytes(_) => {
                self.poisoned.push(lost);
                Kind::Poison
            }
            // It has come meanwhile, or cannot be reached any more: nobody needs the image for it.
            Filled::Exists => {
                let woken = self.uffd.wake(address, page_size);
                woken.map_err(|source| Error::Fill { offset: area.offset_of(page), source })?;
                Kind::Exists
            }
            Filled::Unmapped => Kind::Unmapped,
            refused => {
                area.settled.remove(page..page + 1);
                return match refused {
                    Filled::Again => Ok(Came::nowhere(Step::Again)),
                    Filled::Gone => Ok(Came::nowhere(Step::Gone)),
                    _ => Err(Error::ImageLost { page: lost, source }),
                };
            }
        };
        Ok(Came { step: Step::More, kind, pages: 1 })
    }
}
