//! What makes a sandbox itself and not the one it is a copy of: sent to the agent, and compared with what it says is true.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use wire::{Document, Map, Value};

use crate::Error;

/// How far the guest's clock may be outside the time between asking and the answer, milliseconds.
const CLOCK_BOUND_MS: u64 = 2000;
/// As far behind as this it is better told again.
const CLOCK_LATE_MS: u64 = 500;

/// Who the guest is to be.
pub(crate) struct Identity {
    hostname: Option<String>,
    machine_id: String,
    asked_ms: u64,
}

impl Identity {
    /// The document's: its id, and its machine id, or a fresh one.
    pub fn of(document: &Document) -> Result<Self, wire::Error> {
        let machine_id = match document.find::<String>("guest.machine_id")? {
            None => uuid::Uuid::new_v4().simple().to_string(),
            Some(id) if id.len() == 32 && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) => id,
            Some(id) => {
                let why = format!("{id:?} is not 32 hexadecimal digits");
                return Err(wire::Error::field("guest.machine_id", why));
            }
        };
        let hostname = document.id()?.map(|id| id.as_str().to_owned());
        Ok(Self { hostname, machine_id, asked_ms: 0 })
    }

    pub fn machine_id(&self) -> &str {
        &self.machine_id
    }

    /// Adds to the request what it takes to become this one: now, and with random numbers nobody else gets. Gives the time.
    pub fn ask(&mut self, body: &mut Map<String, Value>) -> Result<String, Error> {
        if let Some(name) = &self.hostname {
            body.insert("hostname".into(), name.as_str().into());
        }
        body.insert("machineId".into(), self.machine_id.as_str().into());
        body.insert("entropy".into(), BASE64.encode(entropy()?).into());
        let now = wire::timestamp();
        self.asked_ms = wire::parse_timestamp(&now).unwrap_or_default();
        body.insert("timestamp".into(), now.clone().into());
        Ok(now)
    }

    /// Whether the clock is behind because the request took its time, as the first one to a guest may whose memory is still
    /// coming: then it is better asked again.
    pub fn is_late(&self, answer: &Value, answered_ms: u64) -> bool {
        let late = self.asked_ms.saturating_sub(CLOCK_LATE_MS)..answered_ms.saturating_sub(CLOCK_LATE_MS);
        clock(answer).is_some_and(|clock| late.contains(&clock))
    }

    /// What of it the agent's answer, which came by then, does not confirm. An answer without a body, as e2b's agent gives
    /// it, confirms nothing.
    pub fn unconfirmed(&self, answer: &Value, answered_ms: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let told = |name: &str| answer.get(name).unwrap_or(&Value::Null);
        for (name, wanted) in
            [("hostname", self.hostname.as_deref()), ("machineId", Some(self.machine_id.as_str()))]
        {
            if let Some(wanted) = wanted.filter(|wanted| told(name) != *wanted) {
                wrong.push(format!("{name} is {:.80}, not {wanted:?}", told(name).to_string()));
            }
        }
        // It was set to the time of the asking: what the request took to get there it is behind.
        let set = self.asked_ms.saturating_sub(CLOCK_BOUND_MS)..=answered_ms + CLOCK_BOUND_MS;
        if !clock(answer).is_some_and(|clock| set.contains(&clock)) {
            wrong.push(format!("clock is {:.80}", told("clock").to_string()));
        }
        if told("reseeded") != &Value::Bool(true) {
            wrong.push("the random numbers are not known to be reseeded".into());
        }
        wrong
    }
}

/// What the agent says its clock is, milliseconds since 1970.
fn clock(answer: &Value) -> Option<u64> {
    wire::parse_timestamp(answer.get("clock")?.as_str()?)
}

fn entropy() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    let path = "/dev/urandom";
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|source| Error::File { path: path.into(), what: "read", source })?;
    Ok(bytes)
}
