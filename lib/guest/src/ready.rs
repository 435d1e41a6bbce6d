//! `wrenn-guest ready`: wait until the agent answers.

use std::time::{Duration, Instant};

use wire::{Call, Document, Reply};

use crate::{Agent, Error};

/// A booting guest drops what is sent to it before its network is up, and TCP sends a lost SYN again only after a
/// second: so each attempt is given up early and made anew.
const ATTEMPT: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let agent = Agent::of(call.document)?;
    let limit = limit(call.document)?;
    let version = wait(&agent, limit)?;
    call.document.set("guest.url", agent.url());
    if let Some(version) = version {
        call.document.set("guest.version", version);
    }
    Ok(Reply::Document)
}

/// More memory takes longer to come back: 30 s, and one more for each 32 MiB.
fn limit(document: &Document) -> Result<Duration, wire::Error> {
    let memory: u64 = document.find("spec.memory_mib")?.unwrap_or(0);
    let (field, seconds) = match document.fields("guest").find::<f64>("timeout_s")? {
        Some(seconds) => ("timeout_s", seconds),
        None => {
            let asked: Option<f64> = document.find("spec.ready_timeout_s")?;
            ("spec.ready_timeout_s", asked.unwrap_or(30.0 + memory as f64 / 32.0))
        }
    };
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| wire::Error::field(field, format!("must be seconds from 0, not {seconds}")))
}

fn wait(agent: &Agent, limit: Duration) -> Result<Option<String>, wire::Error> {
    let started = Instant::now();
    let mut pause = PAUSE;
    loop {
        let left = limit.saturating_sub(started.elapsed());
        // Even a limit of nothing allows one attempt.
        let attempt = ATTEMPT.min(left).max(Duration::from_millis(20));
        let failure = match agent.health(attempt) {
            Ok(version) => return Ok(version),
            Err(failure) => failure,
        };
        wire::check_interrupt()?;
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(Error::NotReady {
                url: agent.url().to_owned(),
                seconds: limit.as_secs_f64(),
                source: failure,
            }
            .into());
        }
        match agent.vm() {
            // The pause ends at once when the VM does.
            Some(vm) if vm.ends_within(pause.min(left)) => return Err(vm.is_gone()),
            Some(_) => {}
            None => std::thread::sleep(pause.min(left)),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
