//! `wrenn-uffd check -- SERVER…`: plays the VMM's part against any page server, and says what it does with each scenario.
//!
//! Three processes take part: this verb, which starts and watches the others; the server, fresh for each scenario; and the
//! VMM, a process of its own ([`vmm`]) that a scenario may have killed and that a server may stop. What memory must hold is
//! computed from a seed ([`model`]) and never read through the server's or this crate's own code.

mod attempt;
mod child;
mod content;
mod discard;
mod ending;
mod greeting;
mod huge;
mod layout;
mod model;
mod processes;
mod race;
mod report;
mod scenario;
mod server;
mod source;
mod stage;
mod temporary;
mod vm;
pub(crate) mod vmm;
mod waits;

use std::time::Duration;

use serde_json::json;
use wire::{Call, Error, Field, LockOf, Reply, Type, Verb};

use crate::Error as Failure;
use attempt::Suite;
use report::Tally;
use scenario::Scenario;

/// How long one scenario may take. A server that waits for a handshake longer than half of it is taken to hang.
const LIMIT: f64 = 20.0;

/// Every scenario, simple ones first.
fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    [
        content::SCENARIOS,
        layout::SCENARIOS,
        race::SCENARIOS,
        discard::SCENARIOS,
        ending::SCENARIOS,
        source::SCENARIOS,
        greeting::SCENARIOS,
    ]
    .into_iter()
    .flatten()
}

pub(crate) const VERB: Verb = Verb {
    fields: &[
        Field::may(
            "server",
            Type::Strings,
            "the server's program and arguments; in them {socket}, {memory} (a raw memory file, with holes) and {dir} \
             (a snapshot directory of the same) are replaced",
        ),
        Field::may("scenarios", Type::Strings, "these alone, by name (default all)"),
        Field::may("list", Type::Bool, "name the scenarios and what must hold, and run none (default false)")
            .flag("list"),
        Field::may("timeout_s", Type::Number, "seconds that one scenario may take (default 20)")
            .flag("timeout"),
        Field::may(
            "seed",
            Type::Integer,
            "what the memory's content and random orders are made of (default 1)",
        ),
    ],
    reply: &[
        Field::may("name", Type::String, "of each event `scenario`: which one"),
        Field::may("must", Type::String, "what must hold"),
        Field::may("result", Type::OneOf(&["passed", "failed", "skipped"]), "whether it did"),
        Field::may("reason", Type::String, "why not"),
        Field::may("server", Type::String, "how the server ended, where that is what the scenario is about"),
        Field::may("log", Type::String, "the last that a failed server wrote to stdout and stderr"),
        Field::may("passed", Type::Integer, "of the event `summary`: how many, with failed and skipped"),
    ],
    example: "wrenn-uffd check -- wrenn-uffd serve source.raw={memory} socket={socket}",
    lock: LockOf::None,
    rest: Some("server"),
    ..Verb::new("check", "play the VMM's part against any page server, one result per scenario", run)
};

/// The verb.
fn run(call: &mut Call) -> Result<Reply, Error> {
    let fields = call.fields();
    let chosen = chosen(fields.find::<Vec<String>>("scenarios")?)?;
    let seconds = fields.find::<f64>("timeout_s")?.unwrap_or(LIMIT);
    let limit = Duration::try_from_secs_f64(seconds).ok().filter(|limit| !limit.is_zero());
    let limit = limit.ok_or_else(|| Error::field("timeout_s", format!("must be seconds, not {seconds}")))?;
    let seed = fields.find::<u64>("seed")?.unwrap_or(1);
    if fields.find::<bool>("list")?.unwrap_or(false) {
        for scenario in chosen {
            call.emit("scenario", json!({"name": scenario.name, "must": scenario.must}))?;
        }
        return Ok(Reply::Streamed(0));
    }
    let words = fields.need::<Vec<String>>("server")?;
    if words.first().is_none_or(String::is_empty) {
        return Err(Error::field("server", "must name a program"));
    }
    sys::uffd::Uffd::create().map_err(|source| Failure::NoUserfaultfd { source })?;

    let suite = Suite { words: &words, seed, limit };
    let mut tally = Tally::default();
    for scenario in chosen {
        wire::check_interrupt()?;
        let result = suite.attempt(scenario)?;
        call.emit("scenario", result.to_json(scenario))?;
        tally.count(scenario, &result);
    }
    call.emit("summary", tally.to_json())?;
    Ok(Reply::Streamed(tally.status()))
}

/// The scenarios of these names.
fn chosen(names: Option<Vec<String>>) -> Result<Vec<&'static Scenario>, Error> {
    let Some(names) = names else { return Ok(scenarios().collect()) };
    names
        .iter()
        .map(|name| {
            find(name).ok_or_else(|| {
                Error::field("scenarios", format!("there is no {name:?}; wrenn-uffd check --list names all"))
            })
        })
        .collect()
}

fn find(name: &str) -> Option<&'static Scenario> {
    scenarios().find(|scenario| scenario.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_in_the_page_as_it_is_here() {
        let page = include_str!("../../../../docs/wrenn-uffd.md");
        for Scenario { name, must, .. } in scenarios() {
            assert!(page.contains(&format!("| `{name}` | {must} |")), "{name}");
        }
    }

    #[test]
    fn every_scenario_has_a_name_of_its_own_and_says_in_one_line_what_must_hold() {
        let mut names: Vec<_> = scenarios().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for scenario in scenarios() {
            assert!(!scenario.must.is_empty() && !scenario.must.contains('\n'), "{}", scenario.name);
        }
    }
}
