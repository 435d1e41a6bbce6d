//! Memory as Cloud Hypervisor writes it: one plain file of all of it, in a directory without a header.

use std::fs;
use std::os::unix::fs::MetadataExt;

use wrenn_tests::json;

mod support;

use support::{Bench, PAGE, names};

/// A template's directory: four pages of memory, the second of them a hole.
fn template(bench: &Bench) {
    fs::create_dir(bench.path("warm")).unwrap();
    bench.diff("warm/memory-ranges", 4, &[(0, 1), (2, 3), (3, 4)]);
    fs::write(bench.path("warm/state.json"), "{}").unwrap();
    fs::write(bench.path("warm/config.json"), json!({"disks": [{"path": "/tmp/of-old/disk"}]}).to_string())
        .unwrap();
    fs::write(bench.path("warm/rootfs.ext4"), "its disk").unwrap();
    fs::write(bench.path("warm/meta.json"), json!({"sandbox_dir": "/tmp/of-old"}).to_string()).unwrap();
}

#[test]
fn what_differs_from_a_plain_memory_file_is_stored_and_the_file_comes_along() {
    let bench = Bench::new();
    template(&bench);
    let before = support::everything(&bench.path("warm"));
    bench.full("raw", &[1, 2, 0, 4]);
    let packed = bench.done("pack raw=@raw dir=@one kind=full parent=@warm");
    assert_eq!(packed["blocks"], json!({"stored": 1, "zero": 1, "inherited": 2}));
    assert_eq!(packed["generation"], 1);
    assert_eq!(support::everything(&bench.path("warm")), before, "the template is untouched");

    let inspected = bench.done("inspect dir=@one");
    let base = inspected["base_build"].as_str().unwrap();
    let (kept, original) = (bench.path(&format!("one/memfile.{base}")), bench.path("warm/memory-ranges"));
    assert_eq!(kept.metadata().unwrap().ino(), original.metadata().unwrap().ino(), "it costs no space");

    bench.full("raw", &[1, 2, 3, 9]);
    let packed = bench.done("pack raw=@raw dir=@two kind=full parent=@one mode=copy");
    assert_eq!(packed["blocks"], json!({"stored": 2, "zero": 0, "inherited": 2}));
    for gone in ["warm", "one"] {
        fs::remove_dir_all(bench.path(gone)).unwrap();
    }
    assert_eq!(bench.memory("two"), [1, 2, 3, 9]);
    bench.done("verify dir=@two");
    bench.done("merge dir=@two");
    assert_eq!(bench.memory("two"), [1, 2, 3, 9]);
}

#[test]
fn a_plain_memory_file_that_is_not_all_of_this_memory_is_refused_as_parent() {
    let bench = Bench::new();
    template(&bench);
    bench.full("raw", &[1, 2, 0, 4]);
    let refused = |parent: &str| {
        let reply = bench.snap(&format!("pack raw=@raw dir=@one kind=full parent=@{parent}")).reply();
        (reply["error"]["kind"].clone(), reply["error"]["code"].clone())
    };
    let memory = bench.path("warm/memory-ranges");
    for (bytes, expected) in [
        (PAGE * 4 - 1, ["corrupt", "snap.plain"]),
        (0, ["corrupt", "snap.plain"]),
        (PAGE * 3, ["invalid", "snap.field"]),
    ] {
        fs::File::create(&memory).unwrap().set_len(bytes as u64).unwrap();
        assert_eq!(refused("warm"), (expected[0].into(), expected[1].into()), "{bytes}");
    }
    fs::remove_file(&memory).unwrap();
    assert_eq!(refused("warm"), ("not_found".into(), "snap.none".into()));
    assert!(!bench.path("one").exists(), "nothing is left of it");
}

#[test]
fn a_template_of_cloud_hypervisor_has_all_memory_in_one_file_and_the_first_sandboxs_path() {
    let bench = Bench::new();
    template(&bench);
    bench.full("raw", &[1, 0, 7, 4]);
    bench.done("pack raw=@raw dir=@one kind=full parent=@warm");
    for name in ["state.json", "config.json"] {
        fs::copy(bench.path("warm").join(name), bench.path("one").join(name)).unwrap();
    }
    fs::write(bench.path("flat.ext4"), "the flattened disk").unwrap();
    let at = |name: &str| bench.path(name).to_string_lossy().into_owned();
    // As of a paused sandbox: it has no section vm any more.
    let document = json!({
        "id": "sb-1", "spec": {"vmm": "cloud-hypervisor", "vcpus": 2, "memory_mib": 512},
        "pause": {"version": "53.0.0"}, "cow": {"out": at("flat.ext4")},
        "snapshot": {"dir": at("one"), "out": at("next"), "meta": {"sandbox_dir": "/etc"}},
    });
    let reply = bench.program("template").stdin(document.to_string()).run().success().reply();
    assert_eq!(reply["snapshot"]["template"]["build"], json!(null));
    let expected = ["config.json", "memory-ranges", "meta.json", "rootfs.ext4", "state.json"];
    assert_eq!(names(&bench.path("next")), expected);
    let bytes: Vec<u8> = [1, 0, 7, 4].iter().flat_map(|value| [*value; PAGE]).collect();
    assert_eq!(fs::read(bench.path("next/memory-ranges")).unwrap(), bytes);
    let meta = &reply["snapshot"]["template"]["meta"];
    for (name, value) in [
        ("sandbox_dir", json!("/tmp/of-old")),
        ("vmm", json!("cloud-hypervisor")),
        ("version", json!("53.0.0")),
        ("vcpus", json!(2)),
        ("memory_mib", json!(512)),
    ] {
        assert_eq!(meta[name], value, "{name} in {meta}");
    }
    bench.done("verify dir=@next");

    for config in ["{\"disks\": []}", "{\"disks\": [{\"path\": \"disk\"}]}", "{\"disks\": ["] {
        fs::write(bench.path("one/config.json"), config).unwrap();
        let refused = bench.snap("template dir=@one rootfs=@flat.ext4 out=@third").status_is(9).reply();
        assert_eq!(refused["error"]["code"], "snap.config", "{config}");
        assert!(!bench.path("third").exists());
    }
}

#[test]
fn little_of_a_full_file_is_copied_and_the_raw_file_goes_when_nothing_can_be_undone() {
    let bench = Bench::new();
    let mut pages: Vec<u8> = (1..=64).collect();
    bench.full("raw", &pages);
    bench.done("pack raw=@raw dir=@one kind=full");
    pages[7] = 200;
    let written = bench.full("raw", &pages);
    let unread = bench.program("pack raw=@raw dir=@two kind=full parent=@one").run_unread();
    assert_ne!(unread, Some(0));
    assert_eq!(fs::read(bench.path("raw")).unwrap(), written, "undone, it is there as it was");
    assert!(!bench.path("two").exists());

    let packed = bench.done("pack raw=@raw dir=@two kind=full parent=@one");
    assert!(!bench.path("raw").exists() && packed.get("raw").is_none(), "{packed}");
    let diff = bench.path("two").join(format!("memfile.{}", packed["build"].as_str().unwrap()));
    assert_eq!(diff.metadata().unwrap().len(), PAGE as u64, "what is stored, end to end");
    assert_eq!(bench.memory("two"), pages);
    bench.full("raw", &pages);
    bench.done("pack raw=@raw dir=@three kind=full parent=@one mode=copy");
    assert!(bench.path("raw").exists(), "a copy that was asked for leaves it");
}
