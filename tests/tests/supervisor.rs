//! What `wrenn` refuses, and what it knows without a VM. No privilege is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use wrenn_tests::{Output, Roots, Value, json, program};

fn wrenn(roots: &Roots, args: &[&str]) -> Output {
    roots.program("wrenn").args(args).run()
}

/// A root with a plain image, a snapshot template that was taken with 2 vcpus and 256 MiB, and a kernel.
fn root_with_templates() -> Roots {
    let roots = Roots::new();
    for (name, meta) in
        [("minimal", None), ("team/warm", Some(json!({"vcpus": 2, "memory_mib": 256, "vmm": "firecracker"})))]
    {
        let dir = roots.root().join("images").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("rootfs.ext4"), vec![0; 4096]).unwrap();
        if let Some(meta) = meta {
            fs::write(dir.join("meta.json"), meta.to_string()).unwrap();
            fs::write(dir.join("snapfile"), b"the state").unwrap();
        }
    }
    fs::create_dir_all(roots.root().join("kernels")).unwrap();
    fs::write(roots.root().join("kernels/vmlinux"), b"not a kernel").unwrap();
    roots
}

/// A sandbox as a document alone.
fn write_sandbox(roots: &Roots, id: &str, state: &str) {
    let dir = roots.root().join("sandboxes").join(id);
    fs::create_dir_all(&dir).unwrap();
    let rootfs = roots.root().join("images/minimal/rootfs.ext4");
    let document = json!({"id": id, "state": state, "rootfs": rootfs, "spec": {"user": "root"}});
    fs::write(dir.join("sandbox.json"), document.to_string()).unwrap();
}

#[test]
fn bad_requests_are_refused_by_name_and_leave_nothing() {
    let roots = root_with_templates();
    write_sandbox(&roots, "idle", "stopped");
    let table: &[(&[&str], i32, &str)] = &[
        (&["create", "--id", "Bad"], 2, "id"),
        (&["create", "--template", "../etc"], 2, "spec.template"),
        (&["create", "--template", "absent"], 3, "absent"),
        (&["create", "--vcpus", "x"], 2, "vcpus"),
        (&["create", "--vcpus", "0"], 2, "spec.vcpus"),
        (&["create", "--memory", "1"], 2, "spec.memory_mib"),
        (&["create", "--template", "team/warm", "--memory", "512"], 2, "256"),
        (&["create", "--template", "team/warm", "--vcpus", "1"], 2, "spec.vcpus"),
        (&["create", "--template", "team/warm", "--vmm", "wrenn-vmm"], 2, "was taken with firecracker"),
        (&["create", "--vmm", "qemu"], 5, "qemu"),
        (&["create", "spec.env:=[]"], 2, "spec.env"),
        (&["create", "kernel=/nonexistent"], 3, "/nonexistent"),
        (&["create", "--id", "idle"], 4, "idle"),
        (&["pause", "absent"], 3, "absent"),
        (&["pause", "idle"], 4, "stopped"),
        (&["resume", "idle"], 4, "no pause"),
        (&["resume", "idle", "timeout_s=x"], 2, "timeout_s"),
        (&["exec", "idle", "--", "true"], 4, "stopped"),
        (&["exec", "absent", "--", "true"], 3, "absent"),
        (&["snapshot", "idle", "Bad"], 2, "name"),
        (&["snapshot", "idle", "new"], 4, "stopped"),
        (&["cp", "/etc/hostname", "/tmp/x"], 2, "ID:/path"),
        (&["cp", "/etc/hostname", "absent:/x"], 3, "absent"),
        (&["ping", "idle"], 4, "stopped"),
        (&["get", "absent"], 3, "absent"),
        (&["template", "fly"], 2, "action"),
        (&["template", "get", "absent"], 3, "absent"),
        (&["template", "rm"], 2, "name"),
        (&["template", "rm", "minimal"], 4, "idle"),
        (&["frobnicate"], 2, "frobnicate"),
    ];
    for (args, status, mentions) in table {
        let reply = wrenn(&roots, args).status_is(*status).reply();
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(mentions), "{args:?}: {message}");
    }
    let left: Vec<_> = fs::read_dir(roots.root().join("sandboxes"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["idle"]);
}

#[test]
fn templates_are_listed_described_and_removed() {
    let roots = root_with_templates();
    let all = wrenn(&roots, &["template", "ls"]).success().reply();
    let kinds: Vec<_> =
        all["templates"].as_array().unwrap().iter().map(|each| (&each["name"], &each["kind"])).collect();
    assert_eq!(kinds, [(&json!("minimal"), &json!("image")), (&json!("team/warm"), &json!("snapshot"))]);
    let one = wrenn(&roots, &["template", "get", "team/warm"]).success().reply();
    assert_eq!(one["template"]["meta"]["memory_mib"], 256);
    wrenn(&roots, &["template", "rm", "team/warm"]).success();
    assert!(!roots.root().join("images/team/warm").exists());
    wrenn(&roots, &["template", "rm", "team/warm"]).status_is(3);
}

#[test]
fn a_document_that_is_damaged_is_reported_as_corrupt() {
    let roots = root_with_templates();
    for (id, text) in
        [("cut", "{\"id\":\"cu"), ("list", "[]"), ("other", "{\"id\":\"else\",\"state\":\"paused\"}")]
    {
        let dir = roots.root().join("sandboxes").join(id);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("sandbox.json"), text).unwrap();
        let reply = wrenn(&roots, &["get", id]).status_is(9).reply();
        assert!(reply["error"]["message"].as_str().unwrap().contains("sandbox.json"), "{reply}");
    }
    let all = wrenn(&roots, &["ls"]).success().reply();
    let errors =
        all["sandboxes"].as_array().unwrap().iter().filter(|each| each["error"]["kind"] == "corrupt").count();
    assert_eq!(errors, 3, "one that is damaged does not hide the others: {all}");
}

#[test]
fn doctor_says_what_is_missing_and_the_remedy() {
    let roots = Roots::new();
    let reply = wrenn(&roots, &["doctor"]).success().reply();
    let checks = reply["checks"].as_array().unwrap();
    let check = |name: &str| -> &Value { checks.iter().find(|check| check["name"] == name).unwrap() };
    assert_eq!(check("kernel")["ok"], false, "there is none below an empty root");
    assert!(check("image")["remedy"].as_str().is_some_and(|text| text.contains("docs/image.md")));
    assert_eq!(check("page server")["ok"], true);
    assert_eq!(reply["ok"], false);
    assert!(checks.iter().all(|check| check["ok"] == true || check["remedy"].is_string()));
}

#[test]
fn the_vmm_of_a_sandbox_that_asks_for_none_is_firecracker_if_there_is_one_and_else_our_own() {
    let roots = root_with_templates();
    let (beside, path) = (roots.dir().join("beside"), roots.dir().join("path"));
    fs::create_dir_all(&beside).unwrap();
    fs::create_dir_all(&path).unwrap();
    fs::copy(program::path("wrenn"), beside.join("wrenn")).unwrap();
    let found = |named: &str| {
        let mut doctor = Command::new(beside.join("wrenn"));
        doctor.arg("doctor").env("WRENN_ROOT", roots.root()).env("WRENN_RUN", roots.run());
        let output = doctor.env("PATH", &path).env("WRENN_FIRECRACKER", named).output().unwrap();
        let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = reply["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "vmm").unwrap();
        (check["ok"] == true, check["message"].as_str().unwrap().to_owned())
    };
    let (ok, message) = found("");
    assert!(!ok && message.contains("firecracker") && message.contains("wrenn-vmm"), "{message}");
    for (program, vmm) in [
        (path.join("wrenn-vmm"), "wrenn-vmm"),
        (beside.join("wrenn-vmm"), "wrenn-vmm"),
        (path.join("firecracker"), "firecracker"),
    ] {
        fs::write(&program, "").unwrap();
        assert_ne!(found("").1, format!("{vmm}: {}", program.display()), "it is no program yet");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(found(""), (true, format!("{vmm}: {}", program.display())));
    }
    let named = program::path("fake-vmm");
    assert_eq!(found(named.to_str().unwrap()), (true, format!("firecracker: {}", named.display())));
    let (ok, message) = found("/nonexistent/firecracker");
    assert!(!ok && message.contains("WRENN_FIRECRACKER"), "a mistake is not passed over: {message}");
}
