//! What is refused before anything is touched.

use std::process::{Command, Stdio};

use wrenn_tests::{Value, json, program};

use crate::bench::{Bench, error};

#[test]
fn without_dev_kvm_a_boot_says_what_is_missing() {
    let Some(bench) = Bench::new() else { return };
    let script = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec \"$0\" boot -";
    let mut unshared = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(program::path("wrenn-launch"))
        .env("WRENN_ROOT", bench.roots.root())
        .env("WRENN_RUN", bench.roots.run())
        .env("WRENN_FIRECRACKER", program::path("fake-vmm"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut unshared.stdin.take().unwrap(), bench.request().to_string().as_bytes())
        .unwrap();
    let output = unshared.wait_with_output().unwrap();
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &reply["error"]["code"]), (Some(5), &json!("launch.kvm")));
    assert!(reply["error"]["message"].as_str().unwrap().contains("/dev/kvm"), "{reply}");
    bench.assert_clean();
}

/// (verb, document or what to change in a good request, status, code, what the message names)
#[test]
fn bad_requests_are_refused_before_anything_is_touched() {
    let Some(bench) = Bench::new() else { return };
    let not_a_program = bench.file("disk");
    let snapshot = bench.file("of-wrenn-vmm");
    std::fs::create_dir(&snapshot).unwrap();
    std::fs::write(snapshot.join("wrenn-vmm.state"), "").unwrap();
    let vm = json!({"pid": 1, "start_time": 1, "boot_id": "x", "api": "/x"});
    let table = [
        ("boot", json!({"id": null}), 2, "wire.field", "id"),
        ("boot", json!({"id": "../x"}), 2, "wire.field", "id"),
        ("boot", json!({"kernel": null}), 2, "wire.field", "kernel"),
        ("boot", json!({"kernel": 7}), 2, "wire.field", "kernel"),
        ("boot", json!({"kernel": "/nonexistent/vmlinux"}), 3, "launch.file", "/nonexistent/vmlinux"),
        ("boot", json!({"kernel": "/tmp"}), 2, "launch.file", "is a directory"),
        ("boot", json!({"initrd": "/nonexistent/initrd"}), 3, "launch.file", "initrd"),
        ("boot", json!({"rootfs": null}), 2, "wire.field", "cow.device"),
        ("boot", json!({"rootfs": "/nonexistent/disk"}), 3, "launch.file", "rootfs"),
        ("boot", json!({"cow": {"device": "/dev/mapper/nonexistent"}}), 3, "launch.file", "cow.device"),
        ("boot", json!({"cmdline": "a\nb"}), 2, "wire.field", "cmdline"),
        ("boot", json!({"spec": {"vcpus": 0}}), 2, "wire.field", "spec.vcpus"),
        ("boot", json!({"spec": {"vcpus": 33}}), 2, "wire.field", "spec.vcpus"),
        ("boot", json!({"spec": {"vcpus": "two"}}), 2, "wire.field", "spec.vcpus"),
        ("boot", json!({"spec": {"memory_mib": 0}}), 2, "wire.field", "spec.memory_mib"),
        ("boot", json!({"spec": {"memory_mib": 0.5}}), 2, "wire.field", "spec.memory_mib"),
        ("boot", json!({"spec": {"vmm": "qemu"}}), 5, "launch.vmm", "qemu"),
        ("boot", json!({"net": {"netns": "../x"}}), 2, "wire.field", "net.netns"),
        ("boot", json!({"net": {"netns": "wt-nonexistent"}}), 3, "launch.netns", "wt-nonexistent"),
        ("boot", json!({"vmm_path": "/nonexistent/vmm"}), 3, "launch.file", "vmm_path"),
        ("boot", json!({"vmm_path": not_a_program}), 2, "launch.file", "is not a program"),
        ("restore", json!({}), 2, "wire.field", "snapshot.dir"),
        ("restore", json!({"snapshot": {"dir": "/nonexistent/gen"}}), 3, "launch.file", "/nonexistent/gen"),
        ("restore", json!({"snapshot": {"dir": "/dev"}}), 3, "launch.no_state", "snapfile"),
        (
            "restore",
            json!({"snapshot": {"dir": snapshot}, "spec": {"vmm": "firecracker"}}),
            2,
            "launch.other_vmm",
            "is a snapshot of wrenn-vmm",
        ),
        ("pause", json!({}), 2, "wire.field", "pid"),
        ("pause", json!({"vm": {"pid": "one"}}), 2, "wire.field", "vm.pid"),
        ("pause", json!({"vm": vm}), 3, "launch.gone", "sb-1"),
        ("pause", json!({"vm": {"vmm": "qemu"}}), 5, "launch.vmm", "vm.vmm"),
        ("resume", json!({"vm": vm}), 3, "launch.gone", "sb-1"),
        ("snapshot", json!({"vm": vm}), 2, "wire.field", "dir"),
        (
            "snapshot",
            json!({"vm": vm, "snapshot": {"dir": "/x", "kind": "half"}}),
            2,
            "wire.field",
            "snapshot.kind",
        ),
        ("snapshot", json!({"vm": vm, "snapshot": {"dir": "/x", "kind": "full"}}), 3, "launch.gone", "sb-1"),
        ("balloon", json!({"vm": vm}), 2, "wire.field", "amount_mib"),
        ("balloon", json!({"vm": vm, "amount_mib": -1}), 2, "wire.field", "amount_mib"),
        ("status", json!({}), 2, "wire.field", "pid"),
        ("stop", json!({"vm": {"pid": 1}}), 2, "wire.field", "start_time"),
        ("wait", json!({}), 2, "wire.field", "pid"),
    ];
    for (verb, change, status, code, named) in table {
        let mut request = bench.request();
        for (name, value) in change.as_object().unwrap() {
            request[name] = value.clone();
        }
        let output = bench.with(verb, &request);
        assert_eq!(output.status, Some(status), "{verb} {change}: {}", output.text());
        let error = &output.reply()["error"];
        assert_eq!(error["code"], code, "{verb} {change}: {error}");
        assert!(error["message"].as_str().unwrap().contains(named), "{verb} {change}: {error}");
        bench.assert_clean();
    }
    let _ = bench.launch("fly").run().status_is(2);
    let _ = bench.launch("boot").args(["what"]).run().status_is(2);
    // A VMM that is nowhere is not replaced by one that is there.
    let output = bench
        .launch("boot")
        .args(["-", "spec.vmm=firecracker"])
        .env("WRENN_FIRECRACKER", "")
        .env("PATH", "/nonexistent")
        .stdin(bench.request().to_string())
        .run();
    let error = error(output, 5, "launch.vmm_absent");
    assert!(error["message"].as_str().unwrap().contains("WRENN_FIRECRACKER"), "{error}");
}

#[test]
fn without_privilege_a_boot_is_refused_with_the_reason_and_nothing_is_left() {
    let Some(bench) = Bench::new() else { return };
    // All of root's files, none of root's rights over mounts.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
        .arg(program::path("wrenn-launch"))
        .args(["boot", "id=sb-1"])
        .args(["kernel", "initrd"].map(|name| {
            format!("{name}={}", bench.file(name.replace("kernel", "vmlinux").as_str()).display())
        }))
        .arg(format!("rootfs={}", bench.file("disk").display()))
        .env("WRENN_ROOT", bench.roots.root())
        .env("WRENN_RUN", bench.roots.run())
        .env("WRENN_FIRECRACKER", program::path("fake-vmm"))
        .output()
        .unwrap();
    let reply: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{reply}");
    assert_eq!(reply["error"]["code"], "launch.child");
    assert!(reply["error"]["message"].as_str().unwrap().contains("private mount namespace"), "{reply}");
    bench.assert_clean();
}
