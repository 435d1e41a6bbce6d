//! `wrenn-guest exec`: run a command in the guest.

use std::io::{BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use ureq::SendBody;
use wire::{Call, Document, Reply};

use crate::{Agent, Error, stream};

/// How often an interrupt or the time limit is looked for while the command is silent.
const TICK: Duration = Duration::from_millis(50);

/// How long a command that was told to end may take, its last output included.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A command to run.
#[derive(Debug, Clone, Default)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub cwd: Option<String>,
    /// Whom to run it as.
    pub user: Option<String>,
    /// Whether it is given a stdin that stays open.
    pub stdin: bool,
    /// After this long it is killed.
    pub timeout: Option<Duration>,
}

/// What a running command tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It runs, under this pid of the guest's.
    Start {
        /// Process id in the guest.
        pid: u32,
    },
    /// It wrote to stdout.
    Stdout(Vec<u8>),
    /// It wrote to stderr.
    Stderr(Vec<u8>),
    /// It ended.
    End(End),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct End {
    /// Exit code; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// The agent's words, such as "exit status 1" or "signal: killed".
    pub status: String,
}

impl Command {
    /// The command of a request: `cmd` (an array, or one string for /bin/sh -c), `env`, `cwd`, `user`, `timeout_s`.
    ///
    /// # Errors
    /// `invalid` naming the field.
    pub fn of(document: &Document) -> Result<Self, wire::Error> {
        let fields = document.fields("guest");
        let argv = match fields.value("cmd") {
            Some((_, Value::String(script))) => vec!["/bin/sh".to_owned(), "-c".to_owned(), script.clone()],
            _ => fields.need::<Vec<String>>("cmd")?,
        };
        if argv.first().is_none_or(String::is_empty) {
            return Err(wire::Error::field("cmd", "must name a program"));
        }
        let timeout = match fields.find::<f64>("timeout_s")? {
            None => None,
            Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|_| {
                wire::Error::field("timeout_s", format!("must be seconds from 0, not {seconds}"))
            })?),
        };
        let user = match fields.find("user")? {
            Some(user) => Some(user),
            None => document.find("spec.user")?,
        };
        Ok(Self {
            argv,
            env: fields.find("env")?.unwrap_or_default(),
            cwd: fields.find("cwd")?,
            user,
            stdin: false,
            timeout,
        })
    }
}

/// A command that runs in the guest.
pub struct Running {
    agent: Agent,
    user: Option<String>,
    events: Receiver<Result<Option<Value>, Error>>,
    deadline: Option<(Instant, f64)>,
    pid: Option<u32>,
}

/// Starts the command.
///
/// # Errors
/// What the agent or the connection says: a program, user or directory that is not there is `not_found`.
pub fn start(agent: &Agent, command: &Command) -> Result<Running, Error> {
    let envs: Map<String, Value> = command.env.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
    let mut process = json!({"cmd": command.argv[0], "args": command.argv[1..], "envs": envs});
    if let Some(cwd) = &command.cwd {
        process["cwd"] = cwd.clone().into();
    }
    let body = stream::wrap(&json!({"process": process, "stdin": command.stdin}));
    let path = "/process.Process/Start";
    let user = command.user.as_deref();
    let response = agent.stream(
        "exec",
        path,
        user,
        "application/connect+json",
        SendBody::from_owned_reader(std::io::Cursor::new(body)),
    )?;
    // A thread reads, so that a silent command can still be interrupted. Few messages wait: output that nobody takes
    // holds the command back, as a full pipe does.
    let (sender, events) = sync_channel(4);
    let mut reader = BufReader::new(response.into_body().into_reader());
    let connection = agent.clone();
    std::thread::spawn(move || {
        loop {
            let message = stream::next("exec", &mut reader).map_err(|error| connection.explained(error));
            let last = !matches!(message, Ok(Some(_)));
            if sender.send(message).is_err() || last {
                return;
            }
        }
    });
    let deadline = command.timeout.map(|timeout| (Instant::now() + timeout, timeout.as_secs_f64()));
    Ok(Running { agent: agent.clone(), user: command.user.clone(), events, deadline, pid: None })
}

impl Running {
    /// The next event; `None` after the end.
    ///
    /// # Errors
    /// `timeout` when the command outlived its limit or this program was told to end (the command is killed then);
    /// `peer` when the connection breaks.
    pub fn next_event(&mut self) -> Result<Option<Event>, wire::Error> {
        loop {
            let message = match self.events.recv_timeout(TICK) {
                Ok(message) => message?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    self.check_limits()?;
                    continue;
                }
            };
            let Some(message) = message else { return Ok(None) };
            if let Some(event) = parse(&message)? {
                if let Event::Start { pid } = event {
                    self.pid = Some(pid);
                }
                self.check_limits()?;
                return Ok(Some(event));
            }
        }
    }

    fn check_limits(&self) -> Result<(), wire::Error> {
        if let Err(interrupted) = wire::check_interrupt() {
            self.end("SIGNAL_SIGTERM");
            return Err(interrupted);
        }
        match self.deadline {
            Some((deadline, seconds)) if Instant::now() >= deadline => {
                self.end("SIGNAL_SIGKILL");
                Err(Error::Timeout { what: "the command", seconds }.into())
            }
            _ => Ok(()),
        }
    }

    /// Ends the command because nobody reads its output, as a broken pipe would.
    pub fn give_up(&self) {
        self.end("SIGNAL_SIGTERM");
    }

    /// Ends the command and waits a little until it has ended. Best effort: the caller is about to report why.
    fn end(&self, signal: &str) {
        self.signal(signal);
        let patience = Instant::now() + LAST_WORDS;
        while let Ok(Ok(Some(_))) =
            self.events.recv_timeout(patience.saturating_duration_since(Instant::now()))
        {}
    }

    fn signal(&self, signal: &str) {
        if let Some(pid) = self.pid {
            let body = json!({"process": {"pid": pid}, "signal": signal});
            let path = "/process.Process/SendSignal";
            if let Err(error) = self.agent.post("signal", path, self.user.as_deref(), &body) {
                log::warn!("the command (guest pid {pid}) may still run: {error}");
            }
        }
    }

    /// Sends `input` to the command's stdin until it ends, then closes it. For a thread of its own; the command's pid must
    /// be known (its `start` event seen).
    ///
    /// # Errors
    /// What reading the input or the agent said.
    pub fn feed(agent: &Agent, user: Option<&str>, pid: u32, mut input: impl Read) -> Result<(), Error> {
        let selector = json!({"pid": pid});
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = input.read(&mut buffer).map_err(|source| Error::File {
                path: "stdin".into(),
                what: "read",
                source,
            })?;
            if read == 0 {
                agent.post(
                    "closing stdin",
                    "/process.Process/CloseStdin",
                    user,
                    &json!({"process": selector}),
                )?;
                return Ok(());
            }
            let body = json!({"process": selector, "input": {"stdin": BASE64.encode(&buffer[..read])}});
            agent.post("stdin", "/process.Process/SendInput", user, &body)?;
        }
    }
}

/// One message of the Start stream. `None` for those that say nothing (keepalive).
fn parse(message: &Value) -> Result<Option<Event>, Error> {
    let strange = |why: &str| Error::Protocol { what: "exec", why: format!("{why} in {message}") };
    let event = message.get("event").ok_or_else(|| strange("no event"))?;
    if let Some(start) = event.get("start") {
        let pid = start.get("pid").and_then(Value::as_u64).ok_or_else(|| strange("no pid"))?;
        return Ok(Some(Event::Start { pid: pid as u32 }));
    }
    if let Some(data) = event.get("data") {
        let bytes = |name: &str| data.get(name).and_then(Value::as_str).map(|text| BASE64.decode(text));
        return match (bytes("stdout"), bytes("stderr")) {
            (Some(Ok(bytes)), _) => Ok(Some(Event::Stdout(bytes))),
            (_, Some(Ok(bytes))) => Ok(Some(Event::Stderr(bytes))),
            _ => Err(strange("no output")),
        };
    }
    if let Some(end) = event.get("end") {
        let text = |name: &str| end.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        // A field that is zero is left out in this encoding.
        let exit_code = end.get("exitCode").and_then(Value::as_i64).unwrap_or(0) as i32;
        let status = text("status");
        let exit_code = signal(&status).map_or(exit_code, |signal| 128 + signal);
        return Ok(Some(Event::End(End { exit_code, status })));
    }
    Ok(None)
}

/// The signal that ended a command, from the agent's words for it: those of Go's `syscall.Signal` (signals 1 to 15), which the
/// field's agents and clients use.
fn signal(status: &str) -> Option<i32> {
    const NAMES: [&str; 15] = [
        "hangup",
        "interrupt",
        "quit",
        "illegal instruction",
        "trace/breakpoint trap",
        "aborted",
        "bus error",
        "floating point exception",
        "killed",
        "user defined signal 1",
        "segmentation fault",
        "user defined signal 2",
        "broken pipe",
        "alarm clock",
        "terminated",
    ];
    let name = status.strip_prefix("signal: ")?;
    let name = name.strip_suffix(" (core dumped)").unwrap_or(name);
    let known = NAMES.iter().position(|known| *known == name).map(|index| index as i32 + 1);
    known.or_else(|| name.strip_prefix("signal ")?.parse().ok())
}

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let fields = call.fields();
    let json: bool = fields.find("json")?.unwrap_or(false);
    let input: Option<String> = fields.find("stdin")?;
    let command = Command { stdin: input.is_some(), ..Command::of(call.document)? };
    let agent = Agent::of(call.document)?;
    let mut running = start(&agent, &command)?;
    if json {
        let status = events(&mut running, |name, fields| call.emit(name, fields), &agent, &command, input)?;
        return Ok(Reply::Streamed(status.clamp(0, 255) as u8));
    }
    let mut result = Collected::default();
    collect(&mut running, &mut result, &agent, &command, input)?;
    call.document.set("exec", result.into_json());
    Ok(Reply::Document)
}

#[derive(Default)]
struct Collected {
    pid: u32,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    end: End,
}

impl Collected {
    fn into_json(self) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        json!({
            "pid": self.pid,
            "exit_code": self.end.exit_code,
            "status": self.end.status,
            "stdout": text(&self.stdout),
            "stderr": text(&self.stderr),
        })
    }
}

fn collect(
    running: &mut Running,
    result: &mut Collected,
    agent: &Agent,
    command: &Command,
    mut input: Option<String>,
) -> Result<(), wire::Error> {
    while let Some(event) = running.next_event()? {
        match event {
            Event::Start { pid } => {
                result.pid = pid;
                feed_text(agent, command, pid, input.take());
            }
            Event::Stdout(bytes) => result.stdout.extend(bytes),
            Event::Stderr(bytes) => result.stderr.extend(bytes),
            Event::End(end) => result.end = end,
        }
    }
    Ok(())
}

/// Emits every event of a command through `emit`. Gives its exit code.
fn events(
    running: &mut Running,
    mut emit: impl FnMut(&str, Value) -> Result<(), wire::Error>,
    agent: &Agent,
    command: &Command,
    mut input: Option<String>,
) -> Result<i32, wire::Error> {
    let mut code = 0;
    while let Some(event) = running.next_event()? {
        if let Event::Start { pid } = event {
            feed_text(agent, command, pid, input.take());
        }
        if let Event::End(end) = &event {
            code = end.exit_code;
        }
        let (name, fields) = event_json(&event);
        emit(name, fields).inspect_err(|_| running.give_up())?;
    }
    Ok(code)
}

/// An event's name and fields. Output is `text`, or `base64` where it is not UTF-8.
pub fn event_json(event: &Event) -> (&'static str, Value) {
    let output = |bytes: &Vec<u8>| match std::str::from_utf8(bytes) {
        Ok(text) => json!({"text": text}),
        Err(_) => json!({"base64": BASE64.encode(bytes)}),
    };
    match event {
        Event::Start { pid } => ("start", json!({"pid": pid})),
        Event::Stdout(bytes) => ("stdout", output(bytes)),
        Event::Stderr(bytes) => ("stderr", output(bytes)),
        Event::End(end) => ("end", json!({"exit_code": end.exit_code, "status": end.status})),
    }
}

fn feed_text(agent: &Agent, command: &Command, pid: u32, input: Option<String>) {
    if let Some(input) = input {
        let (agent, user) = (agent.clone(), command.user.clone());
        std::thread::spawn(move || {
            // A command may end without reading all of its input, as under a shell.
            if let Err(error) = Running::feed(&agent, user.as_deref(), pid, input.as_bytes()) {
                log::info!("not all of stdin was read: {error}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_ended_by_a_signal_has_the_exit_code_a_shell_gives_it() {
        let end =
            |status: &str| parse(&json!({"event": {"end": {"exitCode": -1, "status": status}}})).unwrap();
        let code = |status: &str| match end(status) {
            Some(Event::End(end)) => end.exit_code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code("signal: killed"), 137);
        assert_eq!(code("signal: segmentation fault (core dumped)"), 139);
        assert_eq!(code("signal: signal 34"), 162);
        assert_eq!(code("nobody knows"), -1);
    }

    #[test]
    fn a_zero_exit_code_may_be_left_out() {
        let event = parse(&json!({"event": {"end": {"exited": true, "status": "exit status 0"}}})).unwrap();
        assert_eq!(event, Some(Event::End(End { exit_code: 0, status: "exit status 0".into() })));
        assert_eq!(parse(&json!({"event": {"keepalive": {}}})).unwrap(), None);
        assert!(parse(&json!({"strange": 1})).is_err());
    }
}
