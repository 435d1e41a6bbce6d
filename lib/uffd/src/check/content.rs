//! Every page is what the image says, whoever asks and how many at once.

use std::io::{self, Read, Write};
use std::thread;

use super::model::{GRAIN, Random};
use super::scenario::{Scenario, Unmet};
use super::stage::Stage;
use super::vm::Vm;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("content", "every page is exact, holes and stored zeros included", content),
    Scenario::new(
        "threads",
        "eight threads that read all pages in orders of their own find every one exact",
        threads,
    ),
    Scenario::new(
        "many-faults",
        "300 faults that wait at once, more than one read takes, are all answered",
        many_faults,
    ),
    Scenario::new(
        "kernel-fault",
        "a system call that reads or writes missing memory waits for it as a thread does",
        kernel_fault,
    ),
    Scenario::new(
        "write-fault",
        "a page whose first access is a write has the image around what was written",
        write_fault,
    ),
    Scenario::new("fork", "a VMM that forks is served as before, and its copy disturbs nobody", fork),
];

fn content(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    vm.expect_images(0..vm.pages())
}

fn threads(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    each_in_its_own_order(&vm, stage.model.seed, 8)
}

/// So many threads read every page: forwards, backwards, and at random.
pub(crate) fn each_in_its_own_order(vm: &Vm, seed: u64, threads: u64) -> Result<(), Unmet> {
    thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|number| {
                let mut order: Vec<_> = (0..vm.pages()).collect();
                match number {
                    0 => {}
                    1 => order.reverse(),
                    _ => {
                        let mut random = Random { seed: seed + number, count: 0 };
                        (1..order.len()).for_each(|last| order.swap(last, random.below(last + 1)));
                    }
                }
                scope.spawn(move || vm.expect_images(order))
            })
            .collect();
        readers.into_iter().try_for_each(joined)
    })
}

/// What a thread has found.
pub(crate) fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T, Unmet>>) -> Result<T, Unmet> {
    thread.join().unwrap_or_else(|_| Err(Unmet::failed("a thread of the VMM panicked")))
}

fn many_faults(stage: &Stage) -> Result<(), Unmet> {
    const MANY: usize = 300;
    let (vm, held) = stage.meet_held()?;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..MANY)
            .map(|number| {
                let vm = &vm;
                let builder = thread::Builder::new().stack_size(128 << 10);
                builder.spawn_scoped(scope, move || vm.expect_image(number * 5 + 2))
            })
            .collect::<io::Result<_>>()?;
        vm.await_faults(MANY)?;
        drop(held);
        readers.into_iter().try_for_each(joined)
    })
}

fn kernel_fault(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    let (mut reader, mut writer) = io::pipe()?;
    for page in (0..vm.pages()).step_by(3) {
        let mut found = vec![0; vm.page_size];
        let written = super::waits::during("write(2) from", page..page + 1, || {
            vm.memory.write_out(vm.offset(page), vm.page_size, &writer)
        })?;
        reader.read_exact(&mut found[..written])?;
        if written < vm.page_size {
            return Err(Unmet::Failed(format!("write(2) from page {page} took {written} bytes")));
        }
        vm.compare(page, &found, &vm.image(page), "write(2) read it")?;
    }
    for page in (1..vm.pages()).step_by(3) {
        writer.write_all(&[0x5c; GRAIN / 2])?;
        let read = super::waits::during("read(2) to", page..page + 1, || {
            vm.memory.read_in(vm.offset(page), GRAIN / 2, &reader)
        })?;
        let mut expected = vm.image(page);
        expected[..read].fill(0x5c);
        vm.expect(page, &expected, "read(2) has written to its first half")?;
    }
    Ok(())
}

fn write_fault(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    for page in (0..vm.pages()).step_by(2) {
        vm.write(page, 0xa5);
        vm.expect_written(page, 0xa5)?;
    }
    vm.expect_images((1..vm.pages()).step_by(2))
}

fn fork(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    let Some(page) = vm.telling().next() else { return Err(Unmet::failed("the image is empty")) };
    vm.expect_image(page)?;
    let found = vm.memory.load_in_fork(vm.offset(page))?;
    if found != vm.image(page)[0] {
        return Err(Unmet::Failed(format!("page {page} of the forked copy begins with {found:#04x}")));
    }
    vm.write(page, 0x77);
    vm.memory.load_in_fork(vm.offset(vm.pages() - 1))?;
    vm.expect_written(page, 0x77)?;
    vm.expect_images((0..vm.pages()).filter(|&other| other != page))
}
