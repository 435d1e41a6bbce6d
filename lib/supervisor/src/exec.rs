//! `wrenn exec`: run a command in a sandbox, its output and exit status as if it ran here.

use std::io::Write;

use guest::Agent;
use guest::exec::{Command, Event, event_json};
use wire::{Call, Document, Error, Host, Id, Kind, Options, Reply, Value};

use crate::sandbox::Sandbox;

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let json: bool = call.document.find("json")?.unwrap_or(false);
    let stdin: bool = call.document.find("stdin")?.unwrap_or(false);
    let mut request = call.document.clone();
    request.remove("stdin");
    let document = active(call.host, call.id()?, call.options)?;
    if let (None, Some(user)) = (request.get("user"), document.get("spec.user")) {
        let user: Value = user.clone();
        request.set("user", user);
    }
    let command = Command { stdin, ..Command::of(&request)? };
    let agent = Agent::of(&document)?;
    let mut running = guest::exec::start(&agent, &command)?;
    let mut status = 0;
    while let Some(event) = running.next_event()? {
        match &event {
            Event::Start { pid } if stdin => feed(&agent, &command, *pid),
            Event::End(end) => status = end.exit_code.clamp(0, 255) as u8,
            _ => {}
        }
        if json {
            let (name, fields) = event_json(&event);
            call.emit(name, fields)?;
        } else {
            pass_on(&event)?;
        }
    }
    Ok(Reply::Streamed(status))
}

/// The document of a running sandbox, which counts as active from now on.
pub fn active(host: &Host, id: Id, options: Options) -> Result<Document, Error> {
    let _lock = host.lock(&format!("{id}.op"), options.wait)?;
    let mut sandbox = Sandbox::load(host, id, options)?;
    sandbox.expect(&["running"])?;
    sandbox.touch();
    // Not worth a failure: on a full disk, say, a command may be what makes room.
    if let Err(error) = sandbox.save() {
        log::warn!("{}: its use is not recorded: {error}", sandbox.id);
    }
    Ok(sandbox.document)
}

fn pass_on(event: &Event) -> Result<(), Error> {
    let written = match event {
        Event::Stdout(bytes) => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        Event::Stderr(bytes) => std::io::stderr().lock().write_all(bytes),
        _ => Ok(()),
    };
    written.map_err(|error| {
        Error::new(Kind::Peer, "wrenn.output", "nobody reads the command's output").detail(error)
    })
}

fn feed(agent: &Agent, command: &Command, pid: u32) {
    let (agent, user) = (agent.clone(), command.user.clone());
    std::thread::spawn(move || {
        let fed = guest::exec::Running::feed(&agent, user.as_deref(), pid, std::io::stdin().lock());
        if let Err(error) = fed {
            log::info!("not all of stdin was read: {error}");
        }
    });
}
