//! `wrenn-uffd restart`: another server in the place of the one that serves, of the program as it is installed now. The VM
//! goes on; who touches a missing page meanwhile waits.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use wire::{Call, Error, Reply};

use crate::Error as Failure;
use crate::config::Paths;
use crate::control::{self, Request};
use crate::orders::process_of;
use crate::stats::has_none;
use crate::stop::named;

/// How long each half may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The verb.
pub fn run(call: &mut Call) -> Result<Reply, Error> {
    if has_none(call) {
        return Ok(Reply::Document);
    }
    let paths = Paths::of(call)?;
    let name = named(call)?;
    let logs = paths.log.exists();
    let began = Instant::now();
    let ask = |request| control::ask(&paths.control, name.as_ref(), &request, PATIENCE);
    let left = ask(Request::Restart)??;
    // The answer was its last word; until it has ended it could be asked once more.
    if let Some(server) = process_of(&left["server"]) {
        server.wait(PATIENCE).map_err(Failure::io("wait for", format!("pid {}", server.pid)))?;
    }
    let answer = match ask(Request::Look { vm: None }) {
        Err(gone @ Failure::NotRunning { .. }) => Err(match ended_well(&left, logs, &paths.log)? {
            true => gone,
            false => Failure::NotRestarted { log: paths.log },
        }
        .into()),
        done => done?,
    }?;
    call.answer("stats", answer["stats"].clone());
    call.answer("restart_ms", wire::ms(began.elapsed()));
    Ok(Reply::Document)
}

/// Whether the service that gave this answer ended because its VMM did. A detached one has a log while it runs, and leaves it
/// only where something went wrong; of one in the foreground that cannot be known from here.
fn ended_well(left: &Value, logs: bool, log: &Path) -> Result<bool, Failure> {
    if let Some(service) = process_of(&left["service"]) {
        service.wait(PATIENCE).map_err(Failure::io("wait for", format!("pid {}", service.pid)))?;
    }
    Ok(logs && !log.exists())
}
