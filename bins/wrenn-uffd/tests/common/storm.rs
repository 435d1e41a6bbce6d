//! A VMM that does everything at once: threads that read, write and discard pages at random and compare each page that they
//! read with a model of their own.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use sys::uffd::Memory;

use super::{PAGE, content};

const THREADS: usize = 4;

static CALM: AtomicBool = AtomicBool::new(false);

/// Ends the storm.
pub fn calm() -> String {
    CALM.store(true, Ordering::Relaxed);
    "calming".into()
}

/// Begins it. When it has ended and every page is as the model says, the answer is `exact` and the pages ever discarded, as
/// FIRST+COUNT.
pub fn storm(memory: &Memory, seed: u64) -> String {
    let share = memory.len() / PAGE / THREADS;
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|index| scope.spawn(move || Part::new(memory, index * share, share, seed).run()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    match done.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(discarded) => format!("exact {}", runs(discarded.into_iter().flatten().collect())),
        Err(wrong) => wrong,
    }
}

/// The pages of one thread.
struct Part<'a> {
    memory: &'a Memory,
    first: usize,
    pages: usize,
    random: u64,
    /// What differs from the image.
    model: HashMap<usize, [u8; PAGE]>,
    discarded: BTreeSet<usize>,
}

impl<'a> Part<'a> {
    fn new(memory: &'a Memory, first: usize, pages: usize, seed: u64) -> Self {
        let random = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (first as u64 + 1) << 20;
        Self { memory, first, pages, random, model: HashMap::new(), discarded: BTreeSet::new() }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn run(mut self) -> Result<BTreeSet<usize>, String> {
        while !CALM.load(Ordering::Relaxed) {
            let page = self.first + self.random(self.pages);
            match self.random(4) {
                0 => self.check(page)?,
                1 => self.write(page),
                _ => self.discard(page)?,
            }
        }
        (self.first..self.first + self.pages).try_for_each(|page| self.check(page))?;
        Ok(self.discarded)
    }

    fn check(&self, page: usize) -> Result<(), String> {
        let mut bytes = [0; PAGE];
        self.memory.read(page * PAGE, &mut bytes);
        match bytes == self.model.get(&page).copied().unwrap_or_else(|| content(page)) {
            true => Ok(()),
            false => Err(format!(
                "page {page} differs: discarded {}, image {}, zeros {}",
                self.discarded.contains(&page),
                bytes == content(page),
                bytes == [0; PAGE]
            )),
        }
    }

    fn write(&mut self, page: usize) {
        let (at, value) = (self.random(PAGE), self.random(255) as u8 + 1);
        self.memory.store(page * PAGE + at, value);
        self.model.entry(page).or_insert_with(|| content(page))[at] = value;
    }

    fn discard(&mut self, page: usize) -> Result<(), String> {
        let count = (self.random(8) + 1).min(self.first + self.pages - page);
        self.memory.discard(page * PAGE, count * PAGE).map_err(|error| format!("discard: {error}"))?;
        for page in page..page + count {
            self.model.insert(page, [0; PAGE]);
            self.discarded.insert(page);
        }
        // Often at once, while it is fresh.
        if self.random(2) == 0 { self.check(page) } else { Ok(()) }
    }
}

fn runs(pages: BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == page => *count += 1,
            _ => runs.push((page, 1)),
        }
    }
    list(&runs)
}

/// Ranges of pages, as the storm writes them.
pub fn list(runs: &[(usize, usize)]) -> String {
    runs.iter().map(|(first, count)| format!("{first}+{count}")).collect::<Vec<_>>().join(",")
}
