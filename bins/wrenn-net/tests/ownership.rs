//! Whose a slot is, and what becomes of it: taken, removed, collected, and killed on the way.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use support::{PrivateHost, on_private_host, program, run, traces};
use wrenn_tests::{Roots, Value, json};

fn net_of(document: &Value) -> u64 {
    document["net"]["slot"].as_u64().expect("net.slot")
}

/// A second root on the same host.
fn another() -> PrivateHost {
    PrivateHost { roots: Roots::new() }
}

/// What every host has that had a slot once: nothing that is about one.
fn clean(host: &PrivateHost) -> BTreeSet<String> {
    // A killed remove may have a process that holds its lock for a moment yet; gc leaves alone what is locked.
    for _ in 0..1000 {
        let reply = host.net("gc min_age_s:=0").success().reply();
        if !reply["left"].as_array().expect("left").iter().any(|left| left["why"] == "locked") {
            break;
        }
    }
    traces()
}

#[test]
fn as_root_remove_without_a_section_takes_what_carries_the_mark_and_nothing_else() {
    on_private_host(|host| {
        let before = clean(host);
        host.create("lost", Some(11));
        host.create("lost", Some(12));
        let other = host.create("other", Some(13));
        let foreign = another();
        let theirs = foreign.create("lost", Some(14));
        host.net("remove id=lost").success();
        let left = run("ip", "netns list");
        let stays = |name: &str| left.lines().any(|line| line.split(' ').next() == Some(name));
        assert!(!stays("wrenn-ns-11") && !stays("wrenn-ns-12"), "{left}");
        assert!(stays("wrenn-ns-13") && stays("wrenn-ns-14"), "{left}");
        program(&host.roots, "remove").stdin(other.to_string()).run().success();
        program(&foreign.roots, "remove").stdin(theirs.to_string()).run().success();
        assert_eq!(clean(host), before);
    });
}

#[test]
fn as_root_a_slot_comes_as_the_design_says_and_goes_without_a_trace() {
    on_private_host(|host| {
        let before = clean(host);
        let document = host.create("a", Some(7));
        assert_eq!(
            document["net"],
            json!({"slot": 7, "netns": "wrenn-ns-7", "veth": "wrenn-v-7", "host_ip": "10.11.0.7",
                "veth_ip": "10.12.0.14", "peer_ip": "10.12.0.15", "tap": "tap0", "tap_ip": "169.254.0.22",
                "guest_ip": "169.254.0.21", "guest_mac": "02:fc:00:00:00:05"})
        );
        // As others see it.
        assert_eq!(run("ip", "netns list").split(' ').next(), Some("wrenn-ns-7"));
        let links = run("ip", "-o link show wrenn-v-7");
        assert!(links.contains("state UP") && links.contains("alias wrenn:"), "{links}");
        let inside = run("ip", "netns exec wrenn-ns-7 ip -o -4 addr");
        for address in ["eth0    inet 10.12.0.15/31", "tap0    inet 169.254.0.22/30"] {
            assert!(inside.contains(address), "{address} in {inside}");
        }
        let routes = run("ip", "netns exec wrenn-ns-7 ip route");
        assert!(routes.contains("default via 10.12.0.14 dev eth0"), "{routes}");
        assert!(run("ip", "route").contains("10.11.0.7 via 10.12.0.15 dev wrenn-v-7"));
        assert_eq!(run("sysctl", "-n net.ipv4.ip_forward").trim(), "1");
        assert_eq!(run("ip", "netns exec wrenn-ns-7 sysctl -n net.ipv4.ip_forward").trim(), "1");
        let reply = program(&host.roots, "remove").stdin(document.to_string()).run().success().reply();
        assert!(reply.get("net").is_none(), "{reply}");
        assert_eq!(clean(host), before);
    });
}

#[test]
fn as_root_the_lowest_free_slot_is_taken_and_two_roots_share_them() {
    on_private_host(|host| {
        let other = another();
        assert_eq!(net_of(&host.create("a", None)), 1);
        assert_eq!(net_of(&other.create("a", None)), 2);
        assert_eq!(net_of(&host.create("b", Some(4))), 4);
        assert_eq!(net_of(&host.create("c", None)), 3);
        host.net("remove id=a net.slot:=1").success();
        assert_eq!(net_of(&other.create("d", None)), 1);
        assert_eq!((host.slots(), other.slots()), (vec![3, 4], vec![1, 2]));
        // An interface of that name is in the way even where no file is.
        run("ip", "link add wrenn-v-5 type veth peer name other");
        assert_eq!(net_of(&host.create("e", None)), 6);
        assert_eq!(
            host.net("create id=f net.slot:=5").status_is(4).reply()["error"]["code"],
            "net.slot_taken"
        );
    });
}

#[test]
fn as_root_slots_taken_at_once_are_all_different() {
    on_private_host(|host| {
        let ids: Vec<_> = (0..16).map(|n| format!("s{n}")).collect();
        let children: Vec<_> = ids
            .iter()
            .map(|id| {
                let mut program = program(&host.roots, &format!("create id={id}"));
                program.command().stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("wrenn-net")
            })
            .collect();
        for child in children {
            assert!(child.wait_with_output().expect("its end").status.success());
        }
        assert_eq!(host.slots(), (1..=16).collect::<Vec<_>>());
    });
}

#[test]
fn as_root_an_old_document_does_not_take_down_the_slots_next_tenant() {
    on_private_host(|host| {
        let other = another();
        let old = host.create("a", Some(7));
        host.net("remove id=a net.slot:=7").success();
        for tenant in [host, &other] {
            let id = if std::ptr::eq(tenant, host) { "b" } else { "a" };
            tenant.create(id, Some(7));
            let before = traces();
            let reply = program(&host.roots, "remove").stdin(old.to_string()).run().success().reply();
            assert!(reply.get("net").is_none(), "gone already is success: {reply}");
            assert_eq!(traces(), before);
            assert_eq!(tenant.slots(), [7]);
            tenant.net(&format!("remove id={id} net.slot:=7")).success();
        }
    });
}

#[test]
fn as_root_remove_takes_down_whatever_is_left_of_a_slot() {
    on_private_host(|host| {
        let before = clean(host);
        let damages: [&[(&str, &str)]; 6] = [
            &[],
            &[("ip", "link del wrenn-v-7")],
            &[("umount", "/run/netns/wrenn-ns-7")],
            &[("umount", "/run/netns/wrenn-ns-7"), ("rm", "/run/netns/wrenn-ns-7")],
            &[("ip", "link del wrenn-v-7"), ("umount", "/run/netns/wrenn-ns-7")],
            &[("ip", "netns del wrenn-ns-7")],
        ];
        for damage in damages {
            host.create("a", Some(7));
            // Somebody stays inside, so that the kernel does not take the interfaces away by itself.
            let mut inside = std::process::Command::new("ip")
                .args(["netns", "exec", "wrenn-ns-7", "sh", "-c", "echo; exec sleep 60"])
                .stdout(Stdio::piped())
                .spawn()
                .expect("ip");
            std::io::Read::read(inside.stdout.as_mut().unwrap(), &mut [0]).expect("a sign of life");
            for (program, words) in damage {
                run(program, words);
            }
            for _ in 0..2 {
                host.net("remove id=a net.slot:=7").success();
                assert_eq!(host.net("gc").success().reply()["removed"], json!([]), "after {damage:?}");
                assert_eq!(clean(host), before, "after {damage:?}");
            }
            inside.kill().expect("kill");
            inside.wait().expect("its end");
        }
    });
}

#[test]
fn as_root_gc_takes_what_nobody_keeps_and_nothing_of_another_root() {
    on_private_host(|host| {
        let before = clean(host);
        let other = another();
        run(
            "nft",
            "add table inet filter { chain forward { type filter hook forward priority 0 ; policy accept ; counter ; } ; }",
        );
        let firewall = run("nft", "list table inet filter");
        for id in ["kept", "locked", "busy", "gone"] {
            host.create(id, None);
        }
        other.create("gone", None);
        let locks = host.roots.run().join("locks");
        let held = ["locked", "busy.op"]
            .map(|name| sys::lock::exclusive(&locks.join(name), Duration::ZERO).unwrap());

        let young = host.net("gc keep:=[\"kept\"]").success().reply();
        assert_eq!(young["removed"], json!([]));
        assert_eq!(young["left"][3], json!({"slot": 4, "id": "gone", "why": "young"}));
        let reply = host.net("gc keep:=[\"kept\"] min_age_s:=0").success().reply();
        assert_eq!(reply["removed"], json!([{"slot": 4, "id": "gone"}]));
        assert_eq!(
            reply["left"],
            json!([{"slot": 1, "id": "kept", "why": "kept"}, {"slot": 2, "id": "locked", "why": "locked"},
                {"slot": 3, "id": "busy", "why": "locked"}])
        );
        assert_eq!((host.slots(), other.slots()), (vec![1, 2, 3], vec![5]));
        drop(held);
        assert_eq!(
            host.net("gc min_age_s:=0").success().reply()["host_table"],
            true,
            "another root has a slot"
        );
        assert_eq!((host.slots(), other.slots()), (vec![], vec![5]));
        assert_eq!(other.net("gc min_age_s:=0").success().reply()["host_table"], false);
        // Somebody else's firewall stands as it stood.
        assert_eq!(run("nft", "list table inet filter"), firewall);
        run("nft", "delete table inet filter");
        assert_eq!(traces(), before);
    });
}

#[test]
fn as_root_whatever_a_kill_leaves_gc_removes() {
    on_private_host(|host| {
        let before = clean(host);
        // Both verbs take a few milliseconds: this cuts them everywhere, the start of the program included.
        for (n, verb) in (0..50).flat_map(|n| [(n, "create"), (n, "remove")]) {
            if verb == "remove" {
                host.create("a", Some(7));
            }
            let mut program = program(&host.roots, &format!("{verb} id=a net.slot:=7"));
            let mut child =
                program.command().stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("wrenn-net");
            std::thread::sleep(Duration::from_micros(n * 200));
            child.kill().expect("SIGKILL");
            child.wait().expect("its end");
            assert_eq!(clean(host), before, "{verb} killed after {} µs", n * 200);
        }
    });
}

#[test]
fn as_root_a_create_that_fails_or_whose_reply_is_lost_leaves_the_host_as_it_was() {
    on_private_host(|host| {
        host.create("first", Some(1));
        // In the way of a late step.
        run("ip", "route add unreachable 10.11.0.7/32");
        let before = traces();
        let reply = host.net("create id=a net.slot:=7").status_is(4).reply();
        assert_eq!(reply["error"]["message"], "cannot add the route to 10.11.0.7");
        assert_eq!(reply["error"]["errno"], 17);
        assert_eq!(traces(), before);
        assert_eq!(program(&host.roots, "create id=a").run_unread(), Some(8));
        assert_eq!(traces(), before);
        assert_eq!(host.slots(), [1]);
    });
}

#[test]
fn as_root_the_slots_run_out() {
    on_private_host(|host| {
        host.create("a", None);
        for slot in 2..=32767 {
            fs::write(format!("/run/netns/wrenn-ns-{slot}"), "").unwrap();
        }
        let error = host.net("create id=b").status_is(6).reply()["error"].clone();
        assert_eq!((&error["code"], &error["retry"]), (&json!("net.no_slot"), &json!(true)));
        fs::remove_file("/run/netns/wrenn-ns-20000").unwrap();
        assert_eq!(net_of(&host.create("b", None)), 20000);
        // Files that say nothing of an owner are nobody's business.
        host.net("gc min_age_s:=0").success();
        assert_eq!(fs::read_dir("/run/netns").unwrap().count(), 32767 - 2);
    });
}
