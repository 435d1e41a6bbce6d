//! An ordinary user with access to /dev/userfaultfd needs nothing else, to be served or to serve.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use serde_json::Value;

/// Runs `wrenn-uffd check` on `wrenn-uffd serve` as nobody, where /dev/userfaultfd has this mode: in a mount namespace of
/// its own, with a node of its own in that place.
fn check_as_nobody(mode: &str) -> Output {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // What it was built in may be closed to others.
    let program = home.path().join("wrenn-uffd");
    fs::copy(env!("CARGO_BIN_EXE_wrenn-uffd"), &program).unwrap();
    let script = r#"
        node=$1/userfaultfd program=$1/wrenn-uffd
        mknod "$node" c 10 "$(awk '$2 == "userfaultfd" { print $1 }' /proc/misc)"
        chmod "$2" "$node"
        mount --bind "$node" /dev/userfaultfd
        cd /
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set -all --inh-caps -all \
            "$program" check timeout_s:=60 -- "$program" serve source.dir={dir} socket={socket}"#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", script, "sh"]).arg(home.path()).arg(mode);
    command.output().unwrap()
}

fn last_line(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_else(|| panic!("{output:?}"));
    serde_json::from_str(line).unwrap()
}

#[test]
fn an_ordinary_user_serves_where_the_device_lets_him() {
    if !nix::unistd::geteuid().is_root() || !fs::exists("/dev/userfaultfd").unwrap() {
        return wrenn_tests::skip::here("needs root, to become somebody else, and /dev/userfaultfd");
    }
    let output = check_as_nobody("666");
    let summary = last_line(&output);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!((&summary["event"], &summary["failed"]), (&"summary".into(), &0.into()));
    assert!(summary["passed"].as_u64() > Some(20), "{summary}");

    if fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap().trim() == "0" {
        let output = check_as_nobody("600");
        let refused = last_line(&output);
        assert_eq!(output.status.code(), Some(5), "{refused}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("/dev/userfaultfd"), "{message}");
    }
}
