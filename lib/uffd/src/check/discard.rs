//! What was discarded reads zero, and only that.

use std::ops::Range;
use std::thread;

use super::content::joined;
use super::model::{Random, mix};
use super::scenario::{Layout, Scenario, Unmet};
use super::stage::Stage;
use super::vm::Vm;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "discard-written",
        "a page that was written and then discarded reads zero, time after time",
        written,
    ),
    Scenario::new(
        "discard-mixed",
        "a discard over touched and untouched pages leaves all of them zero and their neighbours exact",
        mixed,
    ),
    Scenario::new("discard-all", "a discard of all memory leaves all of it zero and usable", all),
    Scenario {
        layout: Layout::LARGE,
        ..Scenario::new(
            "discard-unloaded",
            "pages discarded before the server got to them stay zero while the rest is loaded",
            unloaded,
        )
    },
    Scenario::new(
        "discard-before-fault",
        "a fault that comes while a discard of its page waits leaves zeros, not the image's content",
        before_fault,
    ),
    Scenario::new(
        "discard-after-fault",
        "a discard that comes while a fault of its page waits leaves zeros, not the image's content",
        after_fault,
    ),
    Scenario::new(
        "faults-behind-discard",
        "faults that cannot be answered before a discard is read (EAGAIN) are answered after it",
        behind_discard,
    ),
    Scenario::new(
        "discard-load",
        "discards while many pages are being filled: everybody gets done, and exact",
        load,
    ),
    Scenario::new(
        "discard-storm",
        "four threads that read, write and discard at random find every byte as they left it",
        storm,
    ),
];

/// Pages that the image does not leave zero.
fn telling(vm: &Vm, count: usize) -> Vec<usize> {
    vm.telling().take(count).collect()
}

fn written(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    let pages = telling(&vm, 200);
    for (index, &page) in pages.iter().enumerate() {
        vm.write(page, 1);
        for round in 0..1 + index % 3 {
            vm.discard(page..page + 1)?;
            vm.expect_zeros([page])?;
            vm.write(page, 2);
            let mut expected = vec![0; vm.page_size];
            expected[0] = 2;
            vm.expect(page, &expected, &format!("it was discarded {} times, then written", round + 1))?;
        }
        vm.discard(page..page + 1)?;
    }
    vm.expect_zeros(pages.iter().copied())?;
    vm.expect_images((0..vm.pages()).filter(|page| !pages.contains(page)))
}

fn mixed(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    let range = 100..400;
    for page in range.clone().step_by(2) {
        if page % 4 == 0 { vm.write(page, 9) } else { vm.expect_image(page)? }
    }
    vm.discard(range.clone())?;
    exact_but_for(&vm, range)
}

fn all(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    vm.expect_images((0..vm.pages()).step_by(3))?;
    for round in 0..2 {
        vm.discard(0..vm.pages())?;
        vm.expect_zeros(0..vm.pages())?;
        for page in (round..vm.pages()).step_by(7) {
            vm.write(page, 0x33);
            let mut expected = vec![0; vm.page_size];
            expected[0] = 0x33;
            vm.expect(page, &expected, "it was discarded, then written")?;
        }
    }
    Ok(())
}

fn unloaded(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    let range = 5000..6000;
    thread::scope(|scope| {
        let discard = scope.spawn(|| vm.discard(range.clone()));
        vm.await_message()?;
        drop(held);
        joined(discard)
    })?;
    // When these are there, whoever loads ahead has been past the others.
    vm.expect_images((0..range.start).chain(range.end..vm.pages()))?;
    vm.expect_zeros(range)
}

fn before_fault(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    let vm = &vm;
    thread::scope(|scope| {
        let discard = scope.spawn(|| vm.discard(MET));
        vm.await_message()?;
        let readers: Vec<_> = MET.map(|page| scope.spawn(move || read_meanwhile(vm, page))).collect();
        vm.await_faults(MET.len())?;
        drop(held);
        joined(discard)?;
        readers.into_iter().try_for_each(joined)
    })?;
    exact_but_for(vm, MET)
}

fn after_fault(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    let vm = &vm;
    thread::scope(|scope| {
        let readers: Vec<_> = MET.map(|page| scope.spawn(move || read_meanwhile(vm, page))).collect();
        vm.await_faults(MET.len())?;
        let discard = scope.spawn(|| vm.discard(MET));
        vm.await_discard(0)?;
        drop(held);
        joined(discard)?;
        readers.into_iter().try_for_each(joined)
    })?;
    exact_but_for(vm, MET)
}

/// Where faults and a discard meet while the server stands still.
const MET: Range<usize> = 640..704;

/// A read that meets a discard sees the page as it was or as it is afterwards.
fn read_meanwhile(vm: &Vm, page: usize) -> Result<(), Unmet> {
    let found = vm.read(page);
    match found.iter().all(|&byte| byte == 0) {
        true => Ok(()),
        false => vm.compare(page, &found, &vm.image(page), "it was read while it was discarded"),
    }
}

fn exact_but_for(vm: &Vm, discarded: Range<usize>) -> Result<(), Unmet> {
    vm.expect_zeros(discarded.clone())?;
    vm.expect_images((0..discarded.start).chain(discarded.end..vm.pages()))
}

fn behind_discard(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    let range = 1000..1016;
    thread::scope(|scope| {
        let discard = scope.spawn(|| vm.discard(range.clone()));
        vm.await_message()?;
        let readers: Vec<_> = (0..16)
            .map(|number| {
                scope.spawn({
                    let vm = &vm;
                    move || vm.expect_image(number * 30)
                })
            })
            .collect();
        vm.await_faults(16)?;
        drop(held);
        readers.into_iter().try_for_each(joined)?;
        joined(discard)
    })?;
    vm.expect_zeros(range)
}

fn load(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    let half = vm.pages() / 2;
    thread::scope(|scope| {
        let vm = &vm;
        let readers = (0..3).map(|number| scope.spawn(move || vm.expect_images((number..half).step_by(3))));
        let discarders = (0..2).map(|number| {
            scope.spawn(move || {
                for round in 0..100 {
                    let first = half + number * half / 2 + round * 5;
                    if round % 2 == 0 {
                        vm.expect_image(first)?;
                    }
                    vm.discard(first..first + 4)?;
                    vm.expect_zeros(first..first + 4)?;
                }
                Ok(())
            })
        });
        let threads: Vec<_> = readers.chain(discarders).collect();
        threads.into_iter().try_for_each(joined)
    })
}

/// What a thread knows of a page.
#[derive(Clone, Copy)]
struct Known {
    discarded: bool,
    written: Option<u8>,
}

/// Pages in a row that belong to one thread.
const BLOCK: usize = 24;
const THREADS: usize = 4;

fn storm(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    thread::scope(|scope| {
        let vm = &vm;
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || one_of_the_storm(vm, number, mix(stage.model.seed, number as u64)))
            })
            .collect();
        threads.into_iter().try_for_each(joined)
    })
}

fn one_of_the_storm(vm: &Vm, number: usize, seed: u64) -> Result<(), Unmet> {
    let own: Vec<_> = (0..vm.pages()).filter(|page| page / BLOCK % THREADS == number).collect();
    let mut known = vec![Known { discarded: false, written: None }; vm.pages()];
    let mut random = Random { seed, count: 0 };
    let check = |page: usize, known: Known| {
        let mut expected = if known.discarded { vec![0; vm.page_size] } else { vm.image(page) };
        if let Some(value) = known.written {
            expected[0] = value;
        }
        let what = if known.discarded { "discarded" } else { "never discarded" };
        let then = if known.written.is_some() { ", then written" } else { "" };
        vm.expect(page, &expected, &format!("it was {what}{then}"))
    };
    for _ in 0..2500 {
        let page = own[random.below(own.len())];
        match random.below(10) {
            0..5 => check(page, known[page])?,
            5..8 => {
                let value = random.below(256) as u8;
                vm.write(page, value);
                known[page].written = Some(value);
            }
            _ => {
                let end = ((page / BLOCK + 1) * BLOCK).min(vm.pages());
                let pages = page..page + 1 + random.below(end - page);
                vm.discard(pages.clone())?;
                known[pages].fill(Known { discarded: true, written: None });
            }
        }
    }
    own.into_iter().try_for_each(|page| check(page, known[page]))
}
