//! `wrenn-uffd restart`: another server in the place of the one that serves, of the program as it is installed now. The VM
//! goes on; who touches a missing page meanwhile waits.

use std::time::{Duration, Instant};

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
    let began = Instant::now();
    let ask = |request| control::ask(&paths.control, name.as_ref(), &request, PATIENCE);
    let left = ask(Request::Restart)??;
    // The answer was its last word; until it has ended it could be asked once more.
    if let Some(server) = process_of(&left["server"]) {
        server.wait(PATIENCE).map_err(Failure::io("wait for", format!("pid {}", server.pid)))?;
    }
    let answer = match ask(Request::Look { vm: None }) {
        Err(Failure::NotRunning { .. }) => Err(Failure::NotRestarted { log: paths.log }.into()),
        done => done?,
    }?;
    call.answer("stats", answer["stats"].clone());
    call.answer("restart_ms", wire::ms(began.elapsed()));
    Ok(Reply::Document)
}
