//! The detached guardian: writes what happens to the log.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Ending, Guardian};
use crate::config::Config;
use crate::note::note;
use crate::socket;

/// Plays it. `caller` is the pipe to whoever started it: one line, the service's first event.
pub(crate) fn run(config: Config, caller: OwnedFd) -> ExitCode {
    let mut caller = Some(File::from(caller));
    let log = config.paths.log.clone();
    let ending = match Guardian::start(config, None) {
        Err(error) => Ending { error: Some(error.into()), stopped: Vec::new() },
        Ok(guardian) => guard(guardian, &mut caller),
    };
    for pid in &ending.stopped {
        say("vmm_stopped", &json!({"pid": pid, "reason": "its page server ended while pages were missing"}));
    }
    match ending.error {
        None => {
            if ending.stopped.is_empty() {
                let _ = socket::remove(&log);
            }
            ExitCode::SUCCESS
        }
        Some(error) => {
            say("failed", &json!({ "error": error.to_json("wrenn-uffd", "serve") }));
            if let Some(mut caller) = caller {
                let _ = tell(&mut caller, "failed", json!({"error": error.to_json("wrenn-uffd", "serve")}));
            }
            ExitCode::from(error.kind.status())
        }
    }
}

fn guard(guardian: Guardian, caller: &mut Option<File>) -> Ending {
    guardian.follow(|guardian, event| {
        say(&event.name, &Value::Object(event.fields.clone()));
        // Of a failure the caller is told when nothing is left of it.
        if event.name != "failed"
            && let Some(mut caller) = caller.take()
            && tell(&mut caller, &event.name, Value::Object(event.fields)).is_err()
        {
            // Nobody will ever know of this server.
            guardian.terminate();
        }
    })
}

fn tell(caller: &mut File, event: &str, mut fields: Value) -> io::Result<()> {
    fields["event"] = event.into();
    caller.write_all(format!("{fields}\n").as_bytes())
}

/// A line of the log.
fn say(event: &str, fields: &Value) {
    note(format_args!("{event} {fields}"));
}
