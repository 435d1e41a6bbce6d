//! How scenarios went.

use serde_json::{Value, json};

use super::scenario::Scenario;

/// How one went.
#[derive(Debug)]
pub(crate) struct Report {
    pub outcome: Outcome,
    pub ms: f64,
    /// How the server ended, where that is judged.
    pub server: Option<String>,
    /// The last that the server wrote.
    pub log: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Report {
    /// The event's fields.
    pub fn to_json(&self, scenario: &Scenario) -> Value {
        let result = match &self.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed(_) => "failed",
            Outcome::Skipped(_) => "skipped",
        };
        let mut fields =
            json!({"name": scenario.name, "result": result, "ms": self.ms, "must": scenario.must});
        if let Outcome::Failed(why) | Outcome::Skipped(why) = &self.outcome {
            fields["reason"] = why.as_str().into();
        }
        if let Some(server) = &self.server {
            fields["server"] = server.as_str().into();
        }
        if matches!(self.outcome, Outcome::Failed(_)) {
            fields["log"] = self.log.as_str().into();
        }
        fields
    }
}

/// How all went.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    passed: usize,
    failed: Vec<&'static str>,
    skipped: Vec<&'static str>,
}

impl Tally {
    pub fn count(&mut self, scenario: &Scenario, report: &Report) {
        match report.outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed.push(scenario.name),
            Outcome::Skipped(_) => self.skipped.push(scenario.name),
        }
    }

    /// The last event's fields.
    pub fn to_json(&self) -> Value {
        json!({"passed": self.passed, "failed": self.failed.len(), "skipped": self.skipped.len(),
               "failed_scenarios": self.failed, "skipped_scenarios": self.skipped})
    }

    /// The exit status: a server that fails is a peer that answers wrongly.
    pub fn status(&self) -> u8 {
        if self.failed.is_empty() { 0 } else { wire::Kind::Peer.status() }
    }
}
