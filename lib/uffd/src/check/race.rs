//! Several who fill, or ask for, the same page.

use std::thread;

use sys::uffd::Filled;

use super::content::{each_in_its_own_order, joined};
use super::scenario::{Layout, Scenario, Unmet};
use super::stage::Stage;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("same-page", "eight threads that wait for one page all get it", same_page),
    Scenario::new(
        "present-page",
        "a fault whose page is there by the time it is answered (EEXIST wakes nobody) is woken",
        present_page,
    ),
    Scenario {
        layout: Layout::LARGE,
        ..Scenario::new(
            "load-race",
            "faults from four threads while memory is loaded ahead are all answered, and exact",
            load_race,
        )
    },
];

fn same_page(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    let page = 77;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(|| vm.expect_image(page))).collect();
        vm.await_faults(8)?;
        drop(held);
        readers.into_iter().try_for_each(joined)
    })?;
    vm.expect_images(0..vm.pages())
}

/// The VMM's side fills the page and wakes nobody, as a second thread of the server might.
fn present_page(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    let page = 77;
    thread::scope(|scope| {
        let reader = scope.spawn(|| vm.expect_image(page));
        vm.await_faults(1)?;
        match vm.uffd.copy_quietly(vm.memory.address() + vm.offset(page) as u64, &vm.image(page)) {
            Filled::Bytes(count) if count == vm.page_size => {}
            other => return Err(Unmet::Failed(format!("the VMM could not fill its own page: {other:?}"))),
        }
        drop(held);
        joined(reader)
    })?;
    vm.expect_images(0..vm.pages())
}

fn load_race(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    each_in_its_own_order(&vm, stage.model.seed, 4)
}
