//! `wrenn watch` at work, and what it tells.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Program;
use crate::program::LIMIT;

/// A watch that runs, and its events.
#[derive(Debug)]
pub struct Watch {
    /// The program.
    pub child: Child,
    events: Receiver<Value>,
    /// The events so far.
    pub seen: Vec<Value>,
}

impl Watch {
    /// Starts it: `wrenn watch` with its arguments. It is ready.
    ///
    /// # Panics
    /// When it never is.
    pub fn start(mut program: Program) -> Self {
        let command = program.command();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a watch");
        let lines = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line:?}"));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let mut watch = Self { child, events, seen: Vec::new() };
        watch.until("ready");
        watch
    }

    /// The next event of this name.
    ///
    /// # Panics
    /// When none comes.
    pub fn until(&mut self, name: &str) -> Value {
        self.find(name, |_| true)
    }

    /// The next event of this name that is it. Those before it are kept in `seen`.
    ///
    /// # Panics
    /// When none comes.
    pub fn find(&mut self, name: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(event) = self.events.recv_timeout(left) else {
                panic!("no event {name}; there were {:#?}", self.seen);
            };
            assert!(event["at"].is_string(), "{event}");
            self.seen.push(event.clone());
            if event["event"] == name && is_it(&event) {
                return event;
            }
        }
    }

    /// Names of the events so far, without samples.
    ///
    /// # Panics
    /// When one has none.
    pub fn names(&self) -> Vec<&str> {
        let names = self.seen.iter().map(|event| event["event"].as_str().expect("its name"));
        names.filter(|name| *name != "sample").collect()
    }

    /// Ends it. Gives all its events.
    ///
    /// # Panics
    /// When it has ended.
    pub fn end(mut self, signal: Signal) -> Vec<Value> {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it is there");
        self.child.wait().expect("its end");
        self.seen.extend(self.events.iter());
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
