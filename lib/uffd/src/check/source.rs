//! The source of memory ends before memory does. The access may never come to an end, but nobody may be told zeros.

use super::attempt::cut;
use super::scenario::{Ending, Scenario, Unmet};
use super::stage::Stage;
use super::vm::Vm;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        ending: Ending::Stopped,
        cut: true,
        ..Scenario::new(
            "source-short",
            "of memory that its source does not reach nothing is made up: the server refuses, stops the VMM, or the access fails",
            short,
        )
    },
    Scenario {
        ending: Ending::Stopped,
        ..Scenario::new(
            "source-cut",
            "of memory whose source is cut short meanwhile nothing is made up: the server stops the VMM, or the access fails",
            cut_meanwhile,
        )
    },
];

fn short(stage: &Stage) -> Result<(), Unmet> {
    let vm = stage.meet()?;
    look_at_the_end(&vm)
}

fn cut_meanwhile(stage: &Stage) -> Result<(), Unmet> {
    let (vm, held) = stage.meet_held()?;
    cut(&stage.source)?;
    drop(held);
    look_at_the_end(&vm)
}

fn look_at_the_end(vm: &Vm) -> Result<(), Unmet> {
    match vm.telling().next_back() {
        Some(page) => {
            vm.expect(page, &vm.image(page), "what its source does not hold any more must not be made up")
        }
        None => Err(Unmet::failed("the image is empty")),
    }
}
