//! `wrenn exec`: run a command in a sandbox, its output and exit status as if it ran here.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use guest::Agent;
use guest::exec::{Command, Event, event_json};
use wire::{Call, Document, Error, Host, Id, Kind, Options, Reply, Value};

use crate::meanwhile;
use crate::sandbox::Sandbox;

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let json: bool = call.document.find("json")?.unwrap_or(false);
    let mut input = Some(Input::of(call.document)?);
    let stdin = !matches!(input, Some(Input::None));
    let mut request = call.document.clone();
    request.remove("stdin");
    let document = active(call.host, call.id()?, call.options)?;
    if let (None, Some(user)) = (request.get("user"), document.get("spec.user")) {
        let user: Value = user.clone();
        request.set("user", user);
    }
    let command = Command { stdin, ..Command::of(&request)? };
    let agent = Agent::of(&document)?;
    let host = call.host;
    let why = |error: Error| meanwhile::explain(host, &document, error);
    let mut running = guest::exec::start(&agent, &command).map_err(|error| why(error.into()))?;
    let mut status = 0;
    while let Some(event) = running.next_event().map_err(why)? {
        match &event {
            Event::Start { pid } => feed(&agent, &command, *pid, input.take()),
            Event::End(end) => status = end.exit_code.clamp(0, 255) as u8,
            _ => {}
        }
        let passed = if json {
            let (name, fields) = event_json(&event);
            call.emit(name, fields)
        } else {
            pass_on(&event)
        };
        passed.inspect_err(|_| running.give_up())?;
    }
    Ok(Reply::Streamed(status))
}

/// The document of a running sandbox, which counts as active from now on.
pub fn active(host: &Host, id: Id, options: Options) -> Result<Document, Error> {
    let _lock = host.lock(&format!("{id}.op"), options.wait)?;
    let mut sandbox = Sandbox::at_rest(host, id, options)?;
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

/// What the command reads on its stdin.
enum Input {
    None,
    /// This program's stdin.
    Own,
    /// What the request carries.
    Given(Vec<u8>),
}

impl Input {
    fn of(request: &Document) -> Result<Self, Error> {
        let own: bool = request.find("stdin")?.unwrap_or(false);
        let text: Option<String> = request.find("input")?;
        let bytes: Option<String> = request.find("input_base64")?;
        match (own, text, bytes) {
            (false, None, None) => Ok(Self::None),
            (true, None, None) => Ok(Self::Own),
            (false, Some(text), None) => Ok(Self::Given(text.into_bytes())),
            (false, None, Some(text)) => match BASE64.decode(text) {
                Ok(bytes) => Ok(Self::Given(bytes)),
                Err(error) => Err(Error::field("input_base64", error)),
            },
            _ => Err(Error::field("input", "only one of stdin, input and input_base64 can be given")),
        }
    }
}

fn feed(agent: &Agent, command: &Command, pid: u32, input: Option<Input>) {
    let (agent, user) = (agent.clone(), command.user.clone());
    let feed = move |input: &mut dyn std::io::Read| {
        let fed = guest::exec::Running::feed(&agent, user.as_deref(), pid, input);
        // A command may end without reading all of its input, as under a shell.
        if let Err(error) = fed {
            log::info!("not all of stdin was read: {error}");
        }
    };
    match input {
        Some(Input::Own) => drop(std::thread::spawn(move || feed(&mut std::io::stdin().lock()))),
        Some(Input::Given(bytes)) => drop(std::thread::spawn(move || feed(&mut bytes.as_slice()))),
        Some(Input::None) | None => {}
    }
}
