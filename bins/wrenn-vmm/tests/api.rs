//! The program as a client sees it, as far as no KVM is needed.

mod support;

use serde_json::{Value, json};
use support::{Vmm, program};

#[test]
fn a_command_line_it_does_not_understand_has_firecrackers_exit_status() {
    for (words, status, said) in [
        (&["--bogus"][..], 153, "Found argument '--bogus' which wasn't expected"),
        (&["--api-sock"], 153, "'--api-sock' requires a value"),
        (&["--id", "a b"], 153, "Invalid instance ID \"a b\""),
        (&["--level", "Loud"], 152, "Invalid value for '--level'"),
    ] {
        let output = program().args(words).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{words:?}");
        assert!(stderr.contains(said), "{stderr}");
        assert!(output.stdout.is_empty());
    }
    let output = program().arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("wrenn-vmm v{}\n", env!("CARGO_PKG_VERSION"))
    );
    assert!(program().arg("--help").output().unwrap().status.success());
}

#[test]
fn a_socket_that_is_there_is_refused_by_name() {
    let vmm = Vmm::start(&[]);
    let path = vmm.path("api.sock");
    let output = program().arg("--api-sock").arg(&path).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr,
        format!("Error: cannot listen on {}: Address already in use (os error 98)\n", path.display())
    );
}

#[test]
fn it_says_who_it_is_and_goes_on_after_a_mistake() {
    let mut vmm = Vmm::start(&[]);
    assert_eq!(
        vmm.get("/"),
        json!({"id": "test-vm", "state": "Not started", "vmm_version": env!("CARGO_PKG_VERSION"), "app_name": "wrenn-vmm"})
    );
    assert_eq!(vmm.get("/version"), json!({"firecracker_version": env!("CARGO_PKG_VERSION")}));
    let said = vmm.ask("PUT", "/machine-config", json!({"vcpu_count": 1, "memory": 2})).unwrap_err();
    assert!(said.contains("unknown field `memory`"), "{said}");
    assert!(vmm.ask("GET", "/nothing", Value::Null).is_err());
    vmm.put("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 256}));
    assert_eq!(vmm.get("/machine-config")["mem_size_mib"], 256);
    assert!(vmm.output().contains("[test-vm:main] PUT /machine-config"), "{}", vmm.output());
}

#[test]
fn log_and_metrics_go_where_they_are_told() {
    let mut vmm = Vmm::start(&["--level", "Warning"]);
    let (log, metrics) = (vmm.path("log"), vmm.path("metrics"));
    vmm.put("/logger", json!({"log_path": log, "level": "Info", "show_level": true}));
    vmm.put("/metrics", json!({"metrics_path": metrics}));
    vmm.ask("GET", "/nothing", Value::Null).unwrap_err();
    vmm.put("/actions", json!({"action_type": "FlushMetrics"}));
    assert_eq!(vmm.output(), "");
    let text = support::read(&log);
    assert!(
        text.contains(":INFO] PUT /metrics\n") && text.contains(":ERROR] GET /nothing: Invalid"),
        "{text}"
    );
    let line: Value = serde_json::from_str(&support::read(&metrics)).unwrap();
    assert_eq!((&line["api_requests"], &line["api_faults"]), (&json!(4), &json!(1)));
}

#[test]
fn a_state_file_that_does_not_fit_is_answered_and_ends_it() {
    let whole = {
        let mut bytes = b"WRENNVMM\x01\0\0\0".to_vec();
        bytes.extend(crc32fast::hash(b"{}").to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(b"{}");
        bytes
    };
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (bytes, expected) in [
        (vec![], "is cut short: 0 bytes of 24"),
        (whole[..25].to_vec(), "is cut short: 25 bytes of 26"),
        (changed(0), "is no wrenn-vmm state: it does not start with WRENNVMM"),
        (changed(8), "has version 0, this wrenn-vmm reads version 1"),
        (changed(12), "is damaged: its checksum is "),
        (changed(25), "is damaged: its checksum is "),
        (whole.clone(), "holds something else than a machine's state: missing field"),
        (0x0710_1984_8664_0000_u64.to_le_bytes().repeat(4), "is Firecracker's, not wrenn-vmm's"),
    ] {
        let mut vmm = Vmm::start(&[]);
        let path = vmm.path("snapfile");
        std::fs::write(&path, bytes).unwrap();
        let body = json!({
            "snapshot_path": path,
            "mem_backend": {"backend_type": "File", "backend_path": "/nonexistent"},
        });
        let said = vmm.ask("PUT", "/snapshot/load", body).unwrap_err();
        let whole = format!("Load snapshot error: The state file {} {expected}", path.display());
        assert!(said.starts_with(&whole), "{said}");
        assert_eq!(vmm.ended().code(), Some(1));
        let reason = said.trim_start_matches("Load snapshot error: ");
        assert!(vmm.output().ends_with(&format!("Error: {reason}\n")), "{}", vmm.output());
    }
}
