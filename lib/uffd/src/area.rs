//! One region, and which of its pages still depend on the image.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use snap::{Content, Image};
use sys::uffd::{Filled, Uffd, page_size};

use crate::Region;
use crate::bits::Bits;
use crate::state::{Sets, State, Words};

/// A region being served. A page is taken from the image **at most once**: it is then settled, and a later fault on it
/// can only mean that the VMM has discarded it meanwhile, so that it reads as zeros.
#[derive(Debug)]
pub(crate) struct Area {
    pub region: Region,
    /// Pages that are there, or were, or were discarded: the image is asked no more.
    pub settled: Bits,
    /// Pages that the VMM discarded.
    pub removed: Bits,
    /// Pages that the image could not give: who touches one gets SIGBUS.
    pub poisoned: Bits,
    /// Of each discarded page, in which epoch it was discarded last.
    epochs: Words,
}

/// The areas of these regions, as the state has them.
pub(crate) fn all(regions: &[Region], state: &State) -> Vec<Area> {
    regions.iter().zip(state.sets(regions)).map(|(region, sets)| Area::new(*region, sets)).collect()
}

/// How much of the memory in these regions only the image has, in bytes.
pub(crate) fn missing(regions: &[Region], state: &State) -> u64 {
    all(regions, state).iter().map(Area::missing).sum()
}

/// What a request to fill pages came to.
pub(crate) struct Fill {
    /// How far it came, in bytes.
    pub filled: Filled,
    /// Whether it was with the image's content rather than zeros.
    pub from_image: bool,
}

/// What belongs on some pages.
enum Piece<'a> {
    Zeros(u64),
    Bytes(&'a [u8]),
    /// One page, put together from more than one extent.
    Mixed,
}

impl Area {
    pub fn new(region: Region, sets: Sets) -> Self {
        let bits = |words| Bits::at(words, region.pages());
        let Sets { settled, removed, poisoned, epochs } = sets;
        Self { region, settled: bits(settled), removed: bits(removed), poisoned: bits(poisoned), epochs }
    }

    /// Notes that the VMM discarded these pages in this epoch.
    pub fn discard(&mut self, pages: Range<u64>, epoch: u32) {
        // 0 is there already.
        if epoch > 0 {
            let epochs = &self.epochs.halves()[pages.start as usize..pages.end as usize];
            epochs.iter().for_each(|page| page.store(epoch, Relaxed));
        }
        self.settled.insert(pages.clone());
        self.poisoned.remove(pages.clone());
        self.removed.insert(pages);
    }

    /// The pages that were discarded in this epoch or a later one.
    pub fn discarded_since(&self, epoch: u32) -> impl Iterator<Item = Range<u64>> {
        let is_since = move |page: &u64| self.epochs.halves()[*page as usize].load(Relaxed) >= epoch;
        self.removed.runs().flat_map(move |run| {
            let mut at = run.start;
            std::iter::from_fn(move || {
                let start = (at..run.end).find(is_since)?;
                at = (start..run.end).find(|page| !is_since(page)).unwrap_or(run.end);
                Some(start..at)
            })
        })
    }

    /// The page at this address.
    pub fn page_of(&self, address: u64) -> Option<u64> {
        (self.region.address..self.region.end())
            .contains(&address)
            .then(|| (address - self.region.address) / self.region.page_size)
    }

    /// The whole pages inside this range of addresses.
    pub fn pages_of(&self, start: u64, end: u64) -> Range<u64> {
        let within =
            |address: u64| address.clamp(self.region.address, self.region.end()) - self.region.address;
        let first = within(start).div_ceil(self.region.page_size);
        first..(within(end) / self.region.page_size).max(first)
    }

    pub fn address_of(&self, page: u64) -> u64 {
        self.region.address + page * self.region.page_size
    }

    pub fn offset_of(&self, page: u64) -> u64 {
        self.region.offset + page * self.region.page_size
    }

    /// The first run of pages in `within` that still depend on the image.
    pub fn unsettled(&self, within: Range<u64>) -> Option<Range<u64>> {
        let start = self.settled.next_outside(within.start).filter(|&page| page < within.end)?;
        let end = self.settled.next_inside(start).unwrap_or(within.end);
        Some(start..end.min(within.end))
    }

    /// Bytes that only the image has, or not even it.
    pub fn missing(&self) -> u64 {
        (self.region.pages() - self.settled.count() + self.poisoned.count()) * self.region.page_size
    }

    /// Fills some of `pages`, from the first on, with what belongs there: zeros when the first is settled. Data is taken
    /// in pieces of at most `data` bytes and zeros of at most `zeros`, but at least a page.
    pub fn fill(
        &self,
        uffd: &Uffd,
        image: &Image,
        pages: Range<u64>,
        limit: Limit,
        scratch: &mut Scratch,
    ) -> Fill {
        let address = self.address_of(pages.start);
        let (filled, from_image) = match self.piece(image, pages.clone(), limit) {
            Piece::Zeros(length) if self.is_huge() => {
                (uffd.copy(address, scratch.zeros(length.min(self.region.page_size))), false)
            }
            Piece::Zeros(length) => (uffd.zero(address, length), false),
            Piece::Bytes(bytes) => (uffd.copy(address, bytes), true),
            Piece::Mixed => {
                let offset = self.offset_of(pages.start);
                match scratch.assemble(image, offset, self.region.page_size) {
                    Ok(page) => (uffd.copy(address, page), true),
                    Err(error) => (Filled::Failed(error), true),
                }
            }
        };
        match filled {
            // Of a range that ends beyond what is mapped the kernel fills nothing, and says the same: ask for the page alone.
            Filled::Unmapped if pages.end - pages.start > 1 => {
                self.fill(uffd, image, pages.start..pages.start + 1, limit, scratch)
            }
            filled => Fill { filled, from_image },
        }
    }

    fn piece<'a>(&self, image: &'a Image, pages: Range<u64>, limit: Limit) -> Piece<'a> {
        let page_size = self.region.page_size;
        let wanted = (pages.end - pages.start) * page_size;
        if self.settled.has(pages.start) {
            return Piece::Zeros(wanted.min(limit.zeros.max(page_size)));
        }
        let offset = self.offset_of(pages.start);
        let extent = image.extent_at(offset);
        let inside = offset - extent.offset;
        let whole = |limit: u64| {
            (extent.length - inside).min(wanted).min(limit.max(page_size)) / page_size * page_size
        };
        match extent.content {
            Content::Zero if whole(limit.zeros) > 0 => Piece::Zeros(whole(limit.zeros)),
            Content::Data(bytes) if whole(limit.data) > 0 => {
                Piece::Bytes(&bytes[inside as usize..][..whole(limit.data) as usize])
            }
            _ => Piece::Mixed,
        }
    }

    /// Huge pages know no page of zeros, and are copied whole.
    fn is_huge(&self) -> bool {
        self.region.page_size > page_size() as u64
    }
}

/// How much one call may fill, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    pub data: u64,
    pub zeros: u64,
}

/// Memory of the server's own, for the pages that do not lie ready in the image.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    zeros: Vec<u8>,
    page: Vec<u8>,
}

impl Scratch {
    fn zeros(&mut self, length: u64) -> &[u8] {
        if self.zeros.len() < length as usize {
            self.zeros = vec![0; length as usize];
        }
        &self.zeros[..length as usize]
    }

    fn assemble(&mut self, image: &Image, offset: u64, length: u64) -> io::Result<&[u8]> {
        self.page.clear();
        self.page.resize(length as usize, 0);
        for piece in image.pieces(offset, offset + length) {
            if let Content::Data(bytes) = piece.content {
                sys::mapping::copy(bytes, &mut self.page[(piece.offset - offset) as usize..])?;
            }
        }
        Ok(&self.page)
    }
}
