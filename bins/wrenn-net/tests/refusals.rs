//! What wrenn-net refuses, as the contract says, and that it has touched nothing by then.

mod support;

use support::{on_private_host, program, run, traces};
use wrenn_tests::json;

#[test]
fn a_request_that_can_never_work_is_refused_by_its_field() {
    let refused = [
        ("create", "", "id"),
        ("create", "id=", "id"),
        ("create", "id=Not-An-Id", "id"),
        ("create", "id:=7", "id"),
        ("create", "id=a net.slot:=0", "net.slot"),
        ("create", "id=a net.slot:=32768", "net.slot"),
        ("create", "id=a net.slot:=-1", "net.slot"),
        ("create", "id=a net.slot:=1.5", "net.slot"),
        ("create", "id=a net.slot:=1e400", "net.slot"),
        ("create", "id=a net.slot=7", "net.slot"),
        ("create", "id=a slot:=[]", "slot"),
        ("create", "id=a net:=7", "net"),
        ("remove", "net.slot:=7", "id"),
        ("remove", "id=a net:={}", "net.slot"),
        ("remove", "id=a net.slot:=null", "net.slot"),
        ("remove", "id=a net.slot:=0", "net.slot"),
        ("remove", "id=a net:=[]", "net"),
        ("status", "", "slot"),
        ("status", "net.slot:=70000", "net.slot"),
        ("gc", "keep=a", "keep"),
        ("gc", "keep:=[\"A\"]", "keep"),
        ("gc", "min_age_s=soon", "min_age_s"),
        ("gc", "min_age_s:=-1", "min_age_s"),
        ("nothing", "", "nothing"),
    ];
    let roots = wrenn_tests::Roots::new();
    for (verb, words, field) in refused {
        let words = format!("{verb} {words}");
        let run = if words.ends_with(' ') {
            program(&roots, &format!("{verb} -"))
        } else {
            program(&roots, &words)
        };
        let output = run.stdin("{}").run().status_is(2);
        let error = output.reply()["error"].clone();
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(field), "{words}: {message:?} names {field}");
        assert_eq!(error["kind"], "invalid", "{words}");
        assert!(!roots.root().exists(), "{words}");
    }
}

#[test]
fn a_document_without_a_network_has_nothing_to_remove() {
    let roots = wrenn_tests::Roots::new();
    let reply = program(&roots, "remove id=a").run().success().reply();
    assert_eq!(reply["id"], "a");
    // After a failed create, with the error that made it fail.
    let failed = json!({"id": "a", "error": {"tool": "wrenn-net", "verb": "create", "kind": "exhausted", "code": "net.no_slot",
        "message": "none", "detail": [], "retry": true}});
    let reply = program(&roots, "remove --undo -").stdin(failed.to_string()).run().success().reply();
    assert_eq!(reply["error"], failed["error"]);
}

#[test]
fn as_root_a_taken_slot_is_a_conflict_and_its_tenant_does_not_notice() {
    on_private_host(|host| {
        host.create("a", Some(7));
        let before = traces();
        for id in ["a", "b"] {
            let error =
                host.net(&format!("create id={id} net.slot:=7")).status_is(4).reply()["error"].clone();
            assert_eq!((&error["kind"], &error["code"]), (&json!("conflict"), &json!("net.slot_taken")));
            assert!(error["message"].as_str().unwrap().ends_with(":a"), "says whose it is: {error}");
        }
        assert_eq!(traces(), before);
        assert_eq!(host.slots(), [7]);
    });
}

#[test]
fn as_root_without_a_capability_or_the_tun_device_it_says_what_is_missing() {
    on_private_host(|host| {
        host.create("a", Some(7));
        let before = traces();
        let wrenn_net = wrenn_tests::program::path("wrenn-net");
        let without = |capability: &str, words: &str, code: &str, mentions: &str| {
            let output = std::process::Command::new("setpriv")
                .arg(format!("--bounding-set=-{capability}"))
                .arg(&wrenn_net)
                .args(words.split(' '))
                .env("WRENN_ROOT", host.roots.root())
                .env("WRENN_RUN", host.roots.run())
                .output()
                .expect("setpriv");
            let reply = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(5), "{words} without {capability}: {reply}");
            assert!(
                reply.contains(code) && reply.contains(mentions),
                "{words} without {capability}: {reply}"
            );
        };
        for words in ["create id=b", "remove id=a net.slot:=7", "gc min_age_s:=0"] {
            without("net_admin", words, "net.privilege", "CAP_NET_ADMIN");
            without("sys_admin", words, "net.privilege", "CAP_SYS_ADMIN");
        }
        run("mount", "-t tmpfs tmpfs /dev/net");
        let error = host.net("create id=b").status_is(5).reply()["error"].clone();
        assert_eq!((&error["code"], &error["errno"]), (&json!("net.no_tun"), &json!(2)));
        assert_eq!(traces(), before);
        // What is there can still be looked at and removed.
        assert_eq!(host.net("status net.slot:=7").success().reply()["net"]["status"]["complete"], true);
        host.net("remove id=a net.slot:=7").success();
        assert_eq!(host.slots(), [0; 0]);
    });
}
