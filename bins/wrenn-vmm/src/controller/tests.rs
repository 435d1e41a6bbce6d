//! What can be asked before there is a machine. It needs no KVM.

use super::*;
use serde_json::Value;

fn ask(controller: &mut Controller, method: &str, path: &str, body: Value) -> Result<Value, String> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let response =
        controller.handle(&Request { method: method.into(), path: path.into(), body: body.into_bytes() });
    let value: Value = response.body.map_or(Value::Null, |body| serde_json::from_str(&body).unwrap());
    match response.status {
        200 | 204 => Ok(value),
        400 => Err(value["fault_message"].as_str().unwrap().to_owned()),
        status => panic!("{status}"),
    }
}

fn load(dir: &std::path::Path) -> Value {
    json!({
        "snapshot_path": dir.join("snapfile"),
        "mem_backend": {"backend_type": "File", "backend_path": dir.join("memfile")},
    })
}

#[test]
fn what_is_configured_is_shown_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, disk) = (dir.path().join("kernel"), dir.path().join("disk"));
    std::fs::write(&kernel, "x").unwrap();
    std::fs::write(&disk, [0; 4096]).unwrap();
    let mut controller = Controller::new("sb-1");
    let controller = &mut controller;
    let drive = |id: &str, root: bool| json!({"drive_id": id, "path_on_host": disk, "is_root_device": root, "cache_type": "Writeback"});
    ask(controller, "PUT", "/drives/data", drive("data", false)).unwrap();
    ask(controller, "PUT", "/balloon", json!({"amount_mib": 200, "deflate_on_oom": true})).unwrap();
    ask(controller, "PUT", "/drives/rootfs", drive("rootfs", true)).unwrap();
    ask(controller, "PUT", "/boot-source", json!({"kernel_image_path": kernel, "boot_args": "quiet"}))
        .unwrap();
    ask(controller, "PUT", "/entropy", json!({})).unwrap();
    ask(controller, "PUT", "/machine-config", json!({"vcpu_count": 2, "mem_size_mib": 512})).unwrap();
    ask(controller, "PATCH", "/machine-config", json!({"track_dirty_pages": true})).unwrap();
    let config = ask(controller, "GET", "/vm/config", Value::Null).unwrap();
    assert_eq!(
        config["machine-config"],
        json!({"vcpu_count": 2, "mem_size_mib": 512, "smt": false, "track_dirty_pages": true, "huge_pages": "None"})
    );
    assert_eq!(
        (&config["drives"][0]["drive_id"], &config["drives"][1]["drive_id"]),
        (&json!("rootfs"), &json!("data"))
    );
    assert_eq!(
        config["boot-source"],
        json!({"kernel_image_path": kernel, "initrd_path": null, "boot_args": "quiet"})
    );
    assert_eq!(config["balloon"]["amount_mib"], 200);
    assert_eq!(config["entropy"], json!({}));
    assert_eq!(ask(controller, "GET", "/machine-config", Value::Null).unwrap(), config["machine-config"]);
    assert_eq!(ask(controller, "GET", "/balloon", Value::Null).unwrap(), config["balloon"]);
    assert_eq!(
        ask(controller, "GET", "/", Value::Null).unwrap(),
        json!({"id": "sb-1", "state": "Not started", "vmm_version": env!("CARGO_PKG_VERSION"), "app_name": "wrenn-vmm"})
    );
}

#[test]
fn what_needs_a_machine_is_refused_before_there_is_one() {
    let controller = &mut Controller::new("sb-1");
    let no = "The requested operation is not supported before starting the microVM.";
    for (method, path, body) in [
        ("PATCH", "/vm", json!({"state": "Paused"})),
        ("PUT", "/snapshot/create", json!({"snapshot_path": "/s", "mem_file_path": "/m"})),
        ("PATCH", "/balloon", json!({"amount_mib": 1})),
        ("GET", "/balloon/statistics", Value::Null),
        ("PUT", "/actions", json!({"action_type": "SendCtrlAltDel"})),
    ] {
        assert_eq!(ask(controller, method, path, body), Err(no.into()), "{method} {path}");
    }
    assert_eq!(ask(controller, "GET", "/balloon", Value::Null), Err("No balloon device found.".into()));
    assert_eq!(controller.ended(), None);
}

#[test]
fn a_file_that_is_missing_shows_at_once_and_changes_nothing() {
    let controller = &mut Controller::new("sb-1");
    let kernel = json!({"kernel_image_path": "/nonexistent/kernel"});
    let said = ask(controller, "PUT", "/boot-source", kernel).unwrap_err();
    assert_eq!(
        said,
        "The kernel file cannot be opened: /nonexistent/kernel: No such file or directory (os error 2)"
    );
    let drive = json!({"drive_id": "a", "path_on_host": "/nonexistent/disk", "is_root_device": false});
    let said = ask(controller, "PUT", "/drives/a", drive).unwrap_err();
    assert!(said.contains("/nonexistent/disk") && said.contains("(os error 2)"), "{said}");
    let net = json!({"iface_id": "a", "host_dev_name": "wrenn-no-tap"});
    let said = ask(controller, "PUT", "/network-interfaces/a", net).unwrap_err();
    assert!(said.contains("wrenn-no-tap"), "{said}");
    let serial = json!({"serial_out_path": "/nonexistent/serial"});
    let said = ask(controller, "PUT", "/serial", serial).unwrap_err();
    assert!(
        said.starts_with("The serial output file cannot be opened: /nonexistent/serial: No such"),
        "{said}"
    );
    let config = ask(controller, "GET", "/vm/config", Value::Null).unwrap();
    assert_eq!((&config["drives"], &config["network-interfaces"]), (&json!([]), &json!([])));
    assert_eq!(config["boot-source"], Value::Null);
    let said = ask(controller, "PUT", "/actions", json!({"action_type": "InstanceStart"})).unwrap_err();
    assert_eq!(said, "Cannot start microvm without kernel configuration.");
    assert_eq!(controller.ended(), None, "it still takes configuration");
}

#[test]
fn a_snapshot_is_not_loaded_after_configuration_and_the_program_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for (method, path, body) in [
        ("PUT", "/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 128})),
        ("PATCH", "/machine-config", json!({"vcpu_count": 1})),
        // One that failed counts too.
        (
            "PUT",
            "/drives/a",
            json!({"drive_id": "a", "path_on_host": "/nonexistent", "is_root_device": false}),
        ),
        ("PUT", "/entropy", json!({})),
    ] {
        let controller = &mut Controller::new("sb-1");
        let _ = ask(controller, method, path, body);
        assert_eq!(
            ask(controller, "PUT", "/snapshot/load", load(dir.path())),
            Err("Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific \
                 resources."
                .into())
        );
        assert_eq!(controller.ended(), None);
    }
}

#[test]
fn a_snapshot_that_cannot_be_loaded_ends_the_program_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |body: Value| {
        let controller = &mut Controller::new("sb-1");
        ask(controller, "PUT", "/serial", json!({})).unwrap();
        ask(controller, "PUT", "/logger", json!({})).unwrap();
        let said = ask(controller, "PUT", "/snapshot/load", body).unwrap_err();
        let Some(Ended::Failed(reason)) = controller.ended() else { panic!("it goes on") };
        assert_eq!(said, format!("Load snapshot error: {reason}"));
        assert_eq!(ask(controller, "GET", "/", Value::Null).unwrap()["state"], "Not started");
        reason
    };
    let reason = refused(load(dir.path()));
    assert!(
        reason.starts_with("Cannot open the state file ") && reason.ends_with("(os error 2)"),
        "{reason}"
    );
    std::fs::write(dir.path().join("snapfile"), "WRENNVMM\x02\0\0\0").unwrap();
    let reason = refused(load(dir.path()));
    assert!(reason.ends_with("snapfile has version 2, this wrenn-vmm reads version 1"), "{reason}");
    let mut body = load(dir.path());
    body["clock_realtime"] = json!(true);
    let reason = refused(body);
    assert!(reason.starts_with("clock_realtime is not supported by wrenn-vmm"), "{reason}");
}

#[test]
fn a_patch_that_makes_no_machine_changes_nothing() {
    let controller = &mut Controller::new("sb-1");
    let said = ask(controller, "PATCH", "/machine-config", json!({"vcpu_count": 9})).unwrap_err();
    assert_eq!(said, "The vCPU number is invalid: 9, it must be 1 to 4.");
    assert_eq!(ask(controller, "GET", "/machine-config", Value::Null).unwrap()["vcpu_count"], 1);
}
