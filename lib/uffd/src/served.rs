//! Which VMMs a service has, also when none of its processes answers: their states say so, and whoever may look into
//! /proc/PID/fd can read them.

use std::fs::{self, File};
use std::io;

use sys::process::Process;

use crate::state::{self, State};
use crate::{Region, area};

/// A VMM that somebody serves.
pub(crate) struct Served {
    pub vmm: Process,
    state: State,
    regions: Vec<Region>,
}

impl Served {
    /// Those whose state this process holds; none if it is gone.
    pub fn by(process: &Process) -> io::Result<Vec<Self>> {
        let gone = |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound) || !process.is_alive();
        let files = match fs::read_dir(format!("/proc/{}/fd", process.pid)) {
            Err(error) if gone(&error) => return Ok(Vec::new()),
            read => read?,
        };
        let mut served = Vec::new();
        for file in files.flatten() {
            let is_state = |link: std::path::PathBuf| link.to_string_lossy().starts_with(&state::link());
            if !fs::read_link(file.path()).is_ok_and(is_state) {
                continue;
            }
            match File::options().read(true).write(true).open(file.path()) {
                Err(error) if gone(&error) => {}
                opened => {
                    let (state, regions) = State::open(opened?.into())?;
                    served.push(Self { vmm: state.peer()?, state, regions });
                }
            }
        }
        // Whoever has the pid by now is not the one that was meant.
        Ok(if process.is_alive() { served } else { Vec::new() })
    }

    /// Whether all of its memory is there.
    pub fn is_complete(&self) -> bool {
        area::missing(&self.regions, &self.state) == 0
    }
}
