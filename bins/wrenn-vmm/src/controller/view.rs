//! `GET /vm/config`: all of the configuration, under Firecracker's names.

use serde_json::{Value, json};

use crate::config::Config;

/// As Firecracker 1.16 shows it. What this VMM has not is null or empty.
pub(super) fn config(config: &Config) -> Value {
    json!({
        "balloon": config.balloon,
        "drives": config.drives,
        "boot-source": config.boot,
        "cpu-config": null,
        "logger": null,
        "machine-config": config.machine,
        "metrics": null,
        "mmds-config": null,
        "network-interfaces": config.nets,
        "vsock": null,
        "entropy": config.entropy,
        "pmem": [],
        "memory-hotplug": null,
    })
}
