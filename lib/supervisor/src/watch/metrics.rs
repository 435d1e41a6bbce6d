//! The samples as a file for Prometheus (its text format 0.0.4), as node_exporter's textfile collector takes it up.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use wire::{Error, Kind};

use crate::sample::Sample;

/// What is written: the host's sandboxes by state, events so far, and each running sandbox's last sample with its template.
#[derive(Debug, Default)]
pub struct Metrics<'a> {
    pub states: BTreeMap<String, u64>,
    pub events: BTreeMap<&'static str, u64>,
    pub samples: Vec<(&'a Sample, &'a str)>,
}

/// One metric of a sandbox: name, type, help, and its value in base units where the sandbox has it.
type Metric = (&'static str, &'static str, &'static str, fn(&Sample) -> Option<f64>);

const METRICS: [Metric; 8] = [
    ("cpu_seconds_total", "counter", "CPU time of the VMM since it was started.", |sample| {
        Some(sample.cpu_ms as f64 / 1000.0)
    }),
    ("resident_bytes", "gauge", "Resident memory of the VMM.", |sample| Some(sample.rss_bytes as f64)),
    ("lazy_bytes", "gauge", "Guest memory not asked for since the resume.", |sample| {
        Some(sample.lazy_bytes? as f64)
    }),
    ("cow_used_bytes", "gauge", "Taken of the disk's CoW file.", |sample| {
        Some(sample.cow?.used_bytes as f64)
    }),
    ("cow_size_bytes", "gauge", "Size of the disk's CoW file.", |sample| {
        Some(sample.cow?.total_bytes as f64)
    }),
    ("network_receive_bytes_total", "counter", "What the host has received from the sandbox.", |sample| {
        Some(sample.net?.rx_bytes as f64)
    }),
    ("network_transmit_bytes_total", "counter", "What the host has sent to the sandbox.", |sample| {
        Some(sample.net?.tx_bytes as f64)
    }),
    ("open_connections", "gauge", "Open TCP connections to the guest from outside.", |sample| {
        Some(sample.connections? as f64)
    }),
];

impl Metrics<'_> {
    /// Replaces the file: a reader sees the last round or this one, whole.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        // What does not end in .prom is not taken up.
        let new = path.with_extension("new");
        fs::write(&new, self.render()).and_then(|()| fs::rename(&new, path)).map_err(|error| {
            let message = format!("cannot write {}", path.display());
            Error::new(Kind::of_io(&error), "watch.metrics", message).detail(error)
        })
    }

    fn render(&self) -> String {
        let mut text = String::new();
        head(&mut text, "wrenn_sandboxes", "gauge", "Sandboxes by state.");
        for (state, count) in &self.states {
            let _ = writeln!(text, "wrenn_sandboxes{{state=\"{}\"}} {count}", escape(state));
        }
        head(&mut text, "wrenn_watch_events_total", "counter", "Events since the watch was started.");
        for (event, count) in &self.events {
            let _ = writeln!(text, "wrenn_watch_events_total{{event=\"{event}\"}} {count}");
        }
        for (name, kind, help, value) in METRICS {
            let name = format!("wrenn_sandbox_{name}");
            head(&mut text, &name, kind, help);
            for (sample, template) in &self.samples {
                if let Some(value) = value(sample) {
                    let (id, template) = (sample.id.as_str(), escape(template));
                    let _ = writeln!(text, "{name}{{id=\"{id}\",template=\"{template}\"}} {value}");
                }
            }
        }
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value: the format escapes these three.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use net::Traffic;
    use wire::Id;

    use super::*;
    use crate::sample::Fill;

    fn sample(id: &str) -> Sample {
        Sample {
            id: Id::new(id).unwrap(),
            taken: Instant::now(),
            cpu_ms: 1234,
            rss_bytes: 4096,
            lazy_bytes: None,
            cow: None,
            net: None,
            connections: None,
        }
    }

    #[test]
    fn values_are_in_base_units_and_what_a_sandbox_has_not_is_not_there() {
        let (bare, mut full) = (sample("a"), sample("b"));
        full.lazy_bytes = Some(0);
        full.cow = Some(Fill { used_bytes: 512, total_bytes: 1024, is_over: false });
        full.net = Some(Traffic { rx_bytes: 18_014_398_509_481_984, tx_bytes: 2 });
        full.connections = Some(1);
        let metrics = Metrics {
            states: [("running".to_owned(), 2)].into(),
            events: [("failed", 3)].into(),
            samples: vec![(&bare, "minimal"), (&full, "we\"ird\\\n")],
        };
        let text = metrics.render();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let labels = "{id=\"b\",template=\"we\\\"ird\\\\\\n\"}";
        assert_eq!(
            lines,
            [
                "wrenn_sandboxes{state=\"running\"} 2",
                "wrenn_watch_events_total{event=\"failed\"} 3",
                "wrenn_sandbox_cpu_seconds_total{id=\"a\",template=\"minimal\"} 1.234",
                &format!("wrenn_sandbox_cpu_seconds_total{labels} 1.234"),
                "wrenn_sandbox_resident_bytes{id=\"a\",template=\"minimal\"} 4096",
                &format!("wrenn_sandbox_resident_bytes{labels} 4096"),
                &format!("wrenn_sandbox_lazy_bytes{labels} 0"),
                &format!("wrenn_sandbox_cow_used_bytes{labels} 512"),
                &format!("wrenn_sandbox_cow_size_bytes{labels} 1024"),
                &format!("wrenn_sandbox_network_receive_bytes_total{labels} 18014398509481984"),
                &format!("wrenn_sandbox_network_transmit_bytes_total{labels} 2"),
                &format!("wrenn_sandbox_open_connections{labels} 1"),
            ]
        );
    }

    #[test]
    fn every_metric_says_its_type_once_before_its_values() {
        let text = Metrics::default().render();
        let typed: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(typed.len(), METRICS.len() + 2);
        assert!(typed.iter().all(|line| line.ends_with(" counter") == line.contains("_total ")), "{typed:?}");
    }
}
