//! What each running sandbox uses, read from the kernel and from its page server. Nothing is changed, no lock is taken: a
//! sample neither waits for an operation nor holds one up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cow::State;
use net::{Slot, Traffic};
use wire::{Document, Error, Host, Id, Value, json};

/// A page server that does not tell in this time is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one sandbox used at one moment. What cannot be told, or does not exist for this sandbox, is absent.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub id: Id,
    pub taken: Instant,
    /// CPU time of the VMM since it was started, milliseconds: vCPUs and devices.
    pub cpu_ms: u64,
    /// The VMM's resident memory, bytes: the guest's that is there, and its own.
    pub rss_bytes: u64,
    /// Guest memory that has not been asked for since the resume, bytes: it is on disk.
    pub lazy_bytes: Option<u64>,
    /// How full the disk's CoW file is.
    pub cow: Option<Fill>,
    /// What its slot has passed on.
    pub net: Option<Traffic>,
    /// Open TCP connections to the guest from outside.
    pub connections: Option<u64>,
}

/// A CoW file's fill, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    pub used_bytes: u64,
    pub total_bytes: u64,
    /// Whether it takes no more, or no longer works.
    pub is_over: bool,
}

impl Sample {
    /// The fields of an event `sample`.
    pub fn to_json(&self) -> Value {
        let mut fields = json!({"id": self.id.as_str(), "cpu_ms": self.cpu_ms, "rss_bytes": self.rss_bytes});
        if let Some(bytes) = self.lazy_bytes {
            fields["lazy_bytes"] = bytes.into();
        }
        if let Some(fill) = &self.cow {
            fields["cow"] = json!({"used_bytes": fill.used_bytes, "total_bytes": fill.total_bytes});
        }
        if let Some(net) = &self.net {
            fields["net"] = json!({"rx_bytes": net.rx_bytes, "tx_bytes": net.tx_bytes});
        }
        if let Some(connections) = self.connections {
            fields["connections"] = connections.into();
        }
        fields
    }
}

impl Fill {
    fn of(usage: cow::Usage) -> Self {
        let sectors = |count: u64| count * cow::exceptions::SECTOR;
        Self {
            used_bytes: sectors(usage.used),
            total_bytes: sectors(usage.total),
            is_over: usage.state != State::Ok,
        }
    }

    /// How full it is, in percent.
    pub fn percent(&self) -> f64 {
        match (self.is_over, self.total_bytes) {
            (true, _) => 100.0,
            (false, 0) => 0.0,
            (false, total) => (10_000.0 * self.used_bytes as f64 / total as f64).round() / 100.0,
        }
    }
}

/// Samples of these sandboxes. One whose VMM has gone meanwhile is left out.
pub fn all<'a>(host: &Host, documents: impl IntoIterator<Item = (&'a Id, &'a Document)>) -> Vec<Sample> {
    // The kernel is asked once for all.
    let network = Network {
        traffic: net::traffic().map_err(|error| log::warn!("no traffic is sampled: {error}")).ok(),
        connections: net::connections().map_err(|error| log::warn!("nor connections: {error}")).ok(),
    };
    documents.into_iter().filter_map(|(id, document)| one(host, id, document, &network)).collect()
}

/// All slots, as far as they can be told.
struct Network {
    traffic: Option<BTreeMap<Slot, Traffic>>,
    connections: Option<BTreeMap<Slot, u64>>,
}

fn one(host: &Host, id: &Id, document: &Document, network: &Network) -> Option<Sample> {
    let (cpu_ms, rss_bytes) = launch::usage(&document.process("vm").ok()?)?;
    let slot = slot(document).ok().flatten();
    Some(Sample {
        id: id.clone(),
        taken: Instant::now(),
        cpu_ms,
        rss_bytes,
        lazy_bytes: told(id, "missing memory", lazy_bytes(document)),
        cow: told(id, "its disk's fill", cow::fill(document, host)).map(Fill::of),
        net: slot.and_then(|slot| network.traffic.as_ref()?.get(&slot).copied()),
        connections: slot
            .and_then(|slot| Some(network.connections.as_ref()?.get(&slot).copied().unwrap_or(0))),
    })
}

/// Open connections to the guest from outside; none for a sandbox without a network.
pub fn connections(document: &Document) -> Result<u64, Error> {
    match slot(document)? {
        Some(slot) => Ok(net::connections()?.get(&slot).copied().unwrap_or(0)),
        None => Ok(0),
    }
}

fn slot(document: &Document) -> Result<Option<Slot>, Error> {
    document.find::<Slot>("net.slot")
}

/// A VM that booted has all of its memory. A VMM that takes no page server tells nobody what it has yet to read.
fn lazy_bytes(document: &Document) -> Result<Option<u64>, Error> {
    match document.get("uffd") {
        Some(_) => uffd::missing_bytes(document, PATIENCE),
        None => Ok(launch::abilities(document)?.page_server.then_some(0)),
    }
}

fn told<T>(id: &Id, what: &str, asked: Result<Option<T>, Error>) -> Option<T> {
    asked.unwrap_or_else(|error| {
        // It may be on its way out.
        log::info!("{id}: {what} cannot be told: {error}");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_over_is_full_and_an_unknown_size_is_no_division_by_zero() {
        let fill = |used_bytes, total_bytes, is_over| Fill { used_bytes, total_bytes, is_over }.percent();
        assert_eq!(fill(1, 3, false), 33.33);
        assert_eq!(fill(0, 0, true), 100.0);
        assert_eq!(fill(0, 0, false), 0.0);
    }

    #[test]
    fn what_cannot_be_told_is_absent_and_nothing_is_zero_for_it() {
        let mut sample = Sample {
            id: Id::new("a").unwrap(),
            taken: Instant::now(),
            cpu_ms: 7,
            rss_bytes: 4096,
            lazy_bytes: None,
            cow: None,
            net: None,
            connections: None,
        };
        assert_eq!(sample.to_json(), json!({"id": "a", "cpu_ms": 7, "rss_bytes": 4096}));
        sample.lazy_bytes = Some(0);
        sample.cow = Some(Fill { used_bytes: 512, total_bytes: 1024, is_over: false });
        sample.net = Some(Traffic { rx_bytes: 1, tx_bytes: 2 });
        sample.connections = Some(3);
        let text = r#"{"id":"a","cpu_ms":7,"rss_bytes":4096,"lazy_bytes":0,"cow":{"used_bytes":512,"total_bytes":1024},"net":{"rx_bytes":1,"tx_bytes":2},"connections":3}"#;
        assert_eq!(sample.to_json().to_string(), text);
    }
}
