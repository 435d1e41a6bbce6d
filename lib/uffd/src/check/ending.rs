//! The VMM goes, or takes memory away, while the server is at work.

use std::sync::Arc;
use std::thread;

use super::scenario::{Ending, Layout, Scenario, Unmet};
use super::stage::Stage;
use super::vm::Vm;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new(
        "unmap",
        "memory that was unmapped before the server got to it (ENOENT) is passed over, the rest exact",
        unmap,
    ),
    Scenario {
        ending: Ending::Killed,
        ..Scenario::new(
            "killed-in-handshake",
            "of a VMM that is killed before its handshake is read the server lets go: it ends, or takes another VMM",
            in_handshake,
        )
    },
    Scenario {
        ending: Ending::Killed,
        layout: Layout::LARGE,
        ..Scenario::new(
            "killed-in-fault",
            "of a VMM that is killed while a fault waits (ESRCH) the server lets go: it ends, or takes another VMM",
            in_fault,
        )
    },
    Scenario {
        ending: Ending::Killed,
        ..Scenario::new(
            "killed-in-discard",
            "of a VMM that is killed while a discard waits the server lets go",
            in_discard,
        )
    },
    Scenario {
        ending: Ending::Killed,
        layout: Layout::LARGE,
        ..Scenario::new(
            "killed-in-loading",
            "of a VMM that is killed while memory is loaded ahead the server lets go",
            in_loading,
        )
    },
    Scenario {
        ending: Ending::Killed,
        layout: Layout::LARGE,
        ..Scenario::new(
            "closed-in-loading",
            "of a VMM that unmaps its memory and closes its userfaultfd while memory is loaded ahead the server lets go",
            closed_in_loading,
        )
    },
];

fn unmap(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    // Both of its ends lie within content: who fills several pages at once meets them.
    let telling: Vec<_> = vm.telling().collect();
    let within = |&&page: &&usize| (page - 8..page + 8).all(|page| telling.binary_search(&page).is_ok());
    let start = telling.iter().filter(|&&page| page > 300).find(within).copied();
    let end = telling.iter().filter(|&&page| page > 500).find(within).copied();
    let (Some(start), Some(end)) = (start, end) else { return Err(Unmet::failed("the image is empty")) };
    vm.memory.give_up(vm.offset(start), (end - start) * vm.page_size)?;
    drop(held);
    // What lies before the hole is read last, when whoever loads ahead has met it.
    vm.expect_images(end..vm.pages())?;
    vm.expect_images(0..start)
}

fn in_handshake(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    thread::scope(|scope| {
        scope.spawn(|| vm.read(3));
        vm.await_faults(1)?;
        // The verb lets the server go on, when this process is dead.
        std::mem::forget(held);
        stage.ready()
    })
}

fn in_fault(stage: &Stage) -> Result<(), Unmet> {
    let vm = Arc::new(stage.meet()?);
    // Now the handshake is over.
    vm.expect_image(0)?;
    let mut held = stage.hold()?;
    let pages: Vec<_> = vm.telling().rev().step_by(100).take(8).collect();
    if !is_faulting(&vm, &pages)? {
        // All of it is loaded already.
        drop(held);
        pages.iter().try_for_each(|&page| vm.discard(page..page + 1))?;
        held = stage.hold()?;
        is_faulting(&vm, &pages)?;
    }
    std::mem::forget(held);
    stage.ready()
}

/// Has a thread read each of these pages, and waits until one waits. `false` when all of them are there.
fn is_faulting(vm: &Arc<Vm>, pages: &[usize]) -> Result<bool, Unmet> {
    let readers: Vec<_> = pages
        .iter()
        .map(|&page| {
            let vm = vm.clone();
            thread::spawn(move || vm.read(page))
        })
        .collect();
    while vm.uffd.waiting()?.faults == 0 {
        if readers.iter().all(thread::JoinHandle::is_finished) {
            return Ok(false);
        }
        thread::yield_now();
    }
    Ok(true)
}

fn in_discard(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    vm.expect_image(0)?;
    let held = stage.hold()?;
    thread::scope(|scope| {
        let vm = &vm;
        scope.spawn(move || vm.discard(3..9));
        vm.await_discard(0)?;
        std::mem::forget(held);
        stage.ready()
    })
}

fn in_loading(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    // Who answers has begun to load, if it does.
    vm.expect_image(0)?;
    stage.ready()
}

fn closed_in_loading(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    vm.expect_image(0)?;
    drop(vm);
    stage.ready()
}
