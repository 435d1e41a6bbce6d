//! Memory is exact: threads that read, write and discard at random, against a model that each keeps for itself, while the
//! server loads everything ahead.

mod common;

use std::thread;

use common::{Bench, PAGE, connect, content};
use sys::uffd::Memory;

/// Pages that one thread has to itself, so that its model is the truth; the neighbours belong to others.
const BLOCK: usize = 24;

/// What a thread knows of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// As the image has it.
    Image,
    /// Zeros, save perhaps the first byte.
    Zeros(u8),
    /// As the image has it, save the first byte.
    Changed(u8),
}

/// xorshift64*: the same numbers on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

struct Worker<'a> {
    memory: &'a Memory,
    pages: usize,
    threads: usize,
    number: usize,
    known: Vec<Known>,
    removed: Vec<bool>,
    random: Random,
}

impl Worker<'_> {
    fn own_page(&mut self) -> usize {
        loop {
            let page = self.random.below(self.pages);
            if page / BLOCK % self.threads == self.number {
                return page;
            }
        }
    }

    fn check(&self, page: usize) {
        let mut bytes = [0; PAGE];
        self.memory.read(page * PAGE, &mut bytes);
        let mut expected =
            if matches!(self.known[page], Known::Zeros(_)) { [0; PAGE] } else { content(page) };
        if let Known::Zeros(first) | Known::Changed(first) = self.known[page] {
            expected[0] = first;
        }
        assert!(bytes == expected, "page {page} is not {:?}", self.known[page]);
    }

    fn act(&mut self) {
        let page = self.own_page();
        match self.random.below(10) {
            0..5 => self.check(page),
            5..8 => {
                let value = self.random.below(256) as u8;
                self.memory.store(page * PAGE, value);
                self.known[page] = match self.known[page] {
                    Known::Image | Known::Changed(_) => Known::Changed(value),
                    Known::Zeros(_) => Known::Zeros(value),
                };
            }
            _ => {
                let end = ((page / BLOCK + 1) * BLOCK).min(self.pages);
                let length = 1 + self.random.below(end - page);
                self.memory.discard(page * PAGE, length * PAGE).unwrap();
                self.known[page..page + length].fill(Known::Zeros(0));
                self.removed[page..page + length].fill(true);
            }
        }
    }
}

/// One VM's life: so many actions by each of four threads, then every page is compared.
fn life(pages: usize, actions: usize, prefetch: &str, seed: u64) {
    let bench = Bench::new(pages);
    bench.detached(&[&format!("prefetch={prefetch}")]);
    let (memory, uffd) = connect(&bench.run("uffd.sock"), pages);
    let threads = 4;
    let removed: Vec<Vec<bool>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|number| {
                let random = Random(seed * 4 + number as u64 + 1);
                let (known, removed) = (vec![Known::Image; pages], vec![false; pages]);
                let memory = &memory;
                let mut worker = Worker { memory, pages, threads, number, known, removed, random };
                scope.spawn(move || {
                    for _ in 0..actions {
                        worker.act();
                    }
                    (0..pages)
                        .filter(|page| page / BLOCK % threads == number)
                        .for_each(|page| worker.check(page));
                    worker.removed
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    if prefetch == "all" {
        bench.await_complete();
    }
    let stats = bench.stats();
    let expected: Vec<bool> = (0..pages).map(|page| removed.iter().any(|thread| thread[page])).collect();
    let mut named = vec![false; pages];
    for (first, length) in bench.removed() {
        named[first..first + length].fill(true);
    }
    assert!(named == expected, "the list of discarded ranges is what was discarded");
    assert_eq!(stats["removed"], expected.iter().filter(|&&removed| removed).count());
    // Every page has been looked at.
    assert_eq!((&stats["complete"], &stats["missing_bytes"]), (&true.into(), &0.into()));
    drop((memory, uffd));
}

#[test]
fn whatever_is_read_written_and_discarded_while_memory_is_loaded_ahead_every_byte_is_right() {
    for seed in 1..=6 {
        life(4000, 1500, "all", seed);
    }
}

#[test]
fn whatever_is_read_written_and_discarded_on_demand_every_byte_is_right() {
    for seed in 1..=3 {
        life(1500, 3000, "none", seed);
    }
}
