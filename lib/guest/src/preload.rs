//! `wrenn-guest preload`: have the guest touch all of its memory, so that nothing of it is lazy any more.

use std::time::{Duration, Instant};

use wire::{Call, Reply, Value};

use crate::{Agent, Error};

/// The agent has nothing to wait on: it is asked again.
const PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let agent = Agent::of(call.document)?;
    let fields = call.fields();
    let wait: bool = fields.find("wait")?.unwrap_or(false);
    let seconds: f64 = fields.find("timeout_s")?.unwrap_or(300.0);
    agent.post("preload", "/memory/preload", None, &Value::Object(Default::default()))?;
    let started = Instant::now();
    let state = loop {
        let state = agent.get("preload", "/memory/preload")?;
        match state.get("state").and_then(Value::as_str) {
            Some("failed") => {
                let message =
                    state.get("error").and_then(Value::as_str).unwrap_or("no reason given").to_owned();
                return Err(Error::Preload { message }.into());
            }
            Some("done") => break state,
            _ if !wait => break state,
            _ => {}
        }
        wire::check_interrupt()?;
        if started.elapsed().as_secs_f64() >= seconds {
            return Err(Error::Timeout { what: "the preload", seconds }.into());
        }
        std::thread::sleep(PAUSE);
    };
    call.document.set("guest.preload", state);
    Ok(Reply::Document)
}
