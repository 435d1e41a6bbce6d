//! wrenn-snap as it is used: alone and in a sandbox's pipe. Memory is compared page by page.

mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};

use support::{Bench, PAGE, names};
use wrenn_tests::{Value, json};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn packed_unpacked_and_merged_memory_is_what_it_was() {
    let bench = Bench::new();
    bench.full("raw", &[1, 0, 2, 2, 0, 3]);
    let reply = bench.done("pack raw=@raw dir=@one kind=full");
    let results = ["header", "build", "generation", "size", "block_size", "blocks", "diff", "elapsed_ms"];
    assert_eq!(keys(&reply), ["dir", "kind"].iter().chain(&results).copied().collect::<Vec<_>>());
    assert_eq!(reply["blocks"], json!({"stored": 4, "zero": 2, "inherited": 0}));
    assert_eq!((&reply["generation"], &reply["size"]), (&0.into(), &(6 * PAGE).into()));
    assert_eq!(reply["diff"]["bytes"], 4 * PAGE);
    assert_eq!(
        reply["diff"]["path"],
        format!("{}/memfile.{}", reply["dir"].as_str().unwrap(), reply["build"].as_str().unwrap())
    );
    assert!(!bench.path("raw").exists(), "in place, the raw file is the diff file now");

    // Page 1 is written, 2 is zeros now, 3 was discarded, 5 was discarded and written again.
    bench.diff("raw", 6, &[(1, 9), (2, 0), (5, 8)]);
    fs::write(bench.path("removed"), json!({"ranges": [[3 * PAGE, PAGE], [5 * PAGE, PAGE]]}).to_string())
        .unwrap();
    let reply = bench.done("pack raw=@raw dir=@two kind=diff parent=@one removed=@removed");
    assert_eq!(reply["blocks"], json!({"stored": 2, "zero": 2, "inherited": 2}));
    assert_eq!(reply["generation"], 1);
    assert_eq!(bench.memory("two"), [1, 9, 0, 0, 0, 8]);

    // A third generation that gives the second's ranges inline; what it stands on goes away.
    bench.diff("raw", 6, &[(0, 7)]);
    let reply = bench.done("pack raw=@raw dir=@three kind=diff parent=@two removed:=[[4096,4096]] mode=copy");
    assert_eq!(reply["blocks"], json!({"stored": 1, "zero": 1, "inherited": 4}));
    assert!(bench.path("raw").exists(), "a copy leaves the raw file");
    bench.done("delete dir=@one");
    bench.done("delete dir=@two");
    assert_eq!(bench.memory("three"), [7, 0, 0, 0, 0, 8]);

    // All of memory again, of which one page differs.
    bench.full("raw", &[7, 0, 0, 6, 0, 8]);
    let reply = bench.done("pack raw=@raw dir=@four kind=full parent=@three");
    assert_eq!(reply["blocks"], json!({"stored": 1, "zero": 3, "inherited": 2}));
    assert_eq!(bench.memory("four"), [7, 0, 0, 6, 0, 8]);
    let shown = bench.done("inspect dir=@four");
    assert_eq!((shown["generation"].as_u64(), shown["diffs"].as_array().unwrap().len()), (Some(3), 3));

    let reply = bench.done("merge dir=@four");
    assert_eq!(reply["blocks"], json!({"stored": 3, "zero": 3, "inherited": 0}));
    assert_eq!(reply["generation"], 0);
    assert_eq!(bench.memory("four"), [7, 0, 0, 6, 0, 8]);
    assert_eq!(names(&bench.path("four")).len(), 3, "a header, one diff file, its checksums");
    assert_eq!(bench.memory("three"), [7, 0, 0, 0, 0, 8], "the snapshot it was made from is whole");
    bench.done("verify dir=@four");
    let verified = bench.done("verify dir=@three");
    assert_eq!(verified["verified"]["files"], 3, "a header and two diff files that still are referred to");
}

#[test]
fn what_pack_leaves_in_a_document_is_merged() {
    let bench = Bench::new();
    bench.full("raw", &[1, 2, 3, 4]);
    bench.done("pack raw=@raw dir=@one kind=full");
    bench.diff("raw", 4, &[(2, 9)]);
    let section = json!({"dir": bench.path("two"), "kind": "diff", "parent": bench.path("one"), "raw": bench.path("raw")});
    let packed =
        bench.program("pack").stdin(json!({"snapshot": section}).to_string()).run().success().reply();
    let merged = bench.program("merge").stdin(packed.to_string()).run().success().reply();
    assert_eq!(merged["snapshot"]["generation"], 0);
    assert_ne!(merged["snapshot"]["build"], packed["snapshot"]["build"]);
    assert_eq!(bench.memory("two"), [1, 2, 9, 4]);
}

#[test]
fn a_diff_file_comes_along_as_a_link_and_is_stored_once() {
    let bench = Bench::new();
    bench.chain();
    let one = bench.done("inspect dir=@one");
    let build = one["build"].as_str().unwrap();
    let inode = |dir: &str| fs::metadata(bench.path(dir).join(format!("memfile.{build}"))).unwrap().ino();
    assert_eq!(inode("one"), inode("two"));
}

#[test]
fn a_huge_block_takes_its_unwritten_pages_from_the_parent() {
    for mode in ["inplace", "copy"] {
        let bench = Bench::new();
        let mut pages: Vec<u8> = (0..1024).map(|page| (page / 100) as u8).collect();
        bench.full("raw", &pages);
        bench.done("pack raw=@raw dir=@one kind=full block_size:=2097152");
        bench.diff("raw", 1024, &[(600, 77), (601, 0)]);
        let reply = bench.done(&format!(
            "pack raw=@raw dir=@two kind=diff parent=@one removed:=[[2867200,4096]] mode={mode}"
        ));
        assert_eq!(reply["blocks"], json!({"stored": 1, "zero": 0, "inherited": 1}));
        (pages[600], pages[601], pages[700]) = (77, 0, 0);
        assert!(bench.memory("two") == pages);
    }
}

#[test]
fn in_a_sandboxs_document_it_works_on_the_section_and_passes_on_the_rest() {
    let bench = Bench::new();
    bench.chain();
    bench.diff("memfile.raw", 3, &[(0, 4)]);
    fs::write(bench.path("removed"), json!({"ranges": [[PAGE, PAGE]]}).to_string()).unwrap();
    let at = |name: &str| bench.path(name).to_string_lossy().into_owned();
    let document = json!({
        "id": "sb-1", "dir": "/not/this/one", "unknown": {"z": 1, "a": [2]},
        "snapshot": {"dir": at("three"), "kind": "diff", "raw": at("memfile.raw"), "parent": at("two"), "mine": true},
        "uffd": {"pid": 1, "removed": at("removed")},
    });
    let reply = bench.program("pack").stdin(document.to_string()).run().success().reply();
    assert_eq!(reply["unknown"], document["unknown"]);
    assert_eq!(reply["uffd"], document["uffd"]);
    let section = &reply["snapshot"];
    assert_eq!((&section["mine"], &section["generation"]), (&true.into(), &2.into()));
    assert_eq!(section["blocks"], json!({"stored": 1, "zero": 1, "inherited": 1}));
    assert!(section.get("raw").is_none(), "the raw file is no more");
    assert!(reply["timings_ms"]["snap.pack"].is_number());
    assert_eq!(bench.memory("three"), [4, 0, 6]);

    // The end of the sandbox takes the section along.
    let reply = bench.program("delete").stdin(reply.to_string()).run().success().reply();
    assert!(reply.get("snapshot").is_none() && !bench.path("three").exists());
    bench.program("delete").stdin(reply.to_string()).run().success();
}

#[test]
fn a_snapshot_of_the_original_with_its_plain_memfile_is_read_and_built_upon() {
    let bench = Bench::new();
    // Written by hand: two pages, the first stored, under one build.
    let build: [u8; 16] = std::array::from_fn(|n| n as u8 + 1);
    let mut header = Vec::new();
    for number in [1_u64, 4096, 8192, 0] {
        header.extend(number.to_le_bytes());
    }
    header.extend([build, build].concat());
    for (offset, build, storage) in [(0_u64, build, 0_u64), (4096, [0; 16], 0)] {
        header.extend(offset.to_le_bytes());
        header.extend(4096_u64.to_le_bytes());
        header.extend(build);
        header.extend(storage.to_le_bytes());
    }
    fs::create_dir(bench.path("old")).unwrap();
    fs::write(bench.path("old/memfile.header"), header).unwrap();
    fs::write(bench.path("old/memfile"), [5; PAGE]).unwrap();
    fs::write(bench.path("old/snapfile"), "state").unwrap();
    assert_eq!(bench.memory("old"), [5, 0]);
    bench.done("verify dir=@old");
    bench.diff("raw", 2, &[(1, 6)]);
    bench.done("pack raw=@raw dir=@new kind=diff parent=@old");
    bench.done("delete dir=@old");
    assert_eq!(bench.memory("new"), [5, 6]);
    let build = "01020304-0506-0708-090a-0b0c0d0e0f10";
    assert!(
        bench.path("new").join(format!("memfile.{build}")).is_file(),
        "under its build's own name from now on"
    );
}

#[test]
fn a_template_is_complete_apart_and_never_made_over_another() {
    let bench = Bench::new();
    bench.chain();
    fs::write(bench.path("two/snapfile"), "the vm's state").unwrap();
    fs::write(bench.path("two/rootfs.cow"), "a disk that is not the template's").unwrap();
    fs::write(bench.path("two/rootfs.meta"), "{}").unwrap();
    fs::write(bench.path("flat.ext4"), "the flattened disk").unwrap();
    let at = |name: &str| bench.path(name).to_string_lossy().into_owned();
    let document = json!({
        "id": "sb-1", "rootfs": "/images/minimal/rootfs.ext4", "kernel": "/kernels/vmlinux",
        "spec": {"template": "minimal", "vcpus": 2, "memory_mib": 512, "disk_mib": 64},
        "vm": {"vmm": "firecracker", "version": "1.16.1", "workdir": "/tmp/wrenn-vm"},
        "cow": {"out": at("flat.ext4")},
        "snapshot": {"dir": at("two"), "out": at("warm"), "meta": {"note": "mine"}},
    });
    let reply = bench.program("template").stdin(document.to_string()).run().success().reply();
    assert_eq!(reply["snapshot"]["template"]["dir"], at("warm"));
    let build = reply["snapshot"]["template"]["build"].as_str().unwrap().to_owned();
    let own = [format!("memfile.{build}"), format!("memfile.{build}.sum")];
    let mut expected =
        [&["memfile.header", "meta.json", "rootfs.ext4", "snapfile"].map(str::to_owned)[..], &own].concat();
    expected.sort();
    assert_eq!(names(&bench.path("warm")), expected);
    assert_eq!(fs::read_to_string(bench.path("warm/rootfs.ext4")).unwrap(), "the flattened disk");
    let meta: Value = serde_json(&fs::read_to_string(bench.path("warm/meta.json")).unwrap());
    for (name, value) in [
        ("vcpus", json!(2)),
        ("memory_mib", json!(512)),
        ("vmm", json!("firecracker")),
        ("version", json!("1.16.1")),
        ("workdir", json!("/tmp/wrenn-vm")),
        ("kernel", json!("/kernels/vmlinux")),
        ("note", json!("mine")),
    ] {
        assert_eq!(meta[name], value, "{name} in {meta}");
    }
    bench.done("verify dir=@warm");

    let again = bench.program("template").stdin(document.to_string()).run().status_is(4).reply();
    assert_eq!(again["error"]["code"], "snap.exists");
    // A sandbox that stands on a template does not take it along; asked for by itself, it goes.
    let user = json!({"id": "sb-2", "snapshot": {"dir": at("warm")}});
    bench.program("delete").stdin(user.to_string()).run().success();
    bench.done("delete dir=@two");
    bench.done("delete dir=@one");
    fs::remove_file(bench.path("flat.ext4")).unwrap();
    assert_eq!(bench.memory("warm"), [1, 5, 6]);
    assert_eq!(bench.done("delete dir=@warm")["deleted"], true);
    assert_eq!(bench.done("delete dir=@warm")["deleted"], false, "already gone is success");
    assert_eq!(names(bench.roots.dir()), ["run", "unpacked"], "nothing is left beside it");
}

fn serde_json(text: &str) -> Value {
    text.parse().expect("JSON")
}

#[test]
fn a_working_set_comes_along_to_images_of_the_same_memory_and_to_the_next_generation() {
    let bench = Bench::new();
    bench.chain();
    bench.working_set("two", &[(1, 2)]);
    let shown = |dir: &str| bench.done(&format!("inspect dir=@{dir}"))["workingset"].clone();
    let set = shown("two");
    assert_eq!(set, json!({"bytes": 2 * PAGE, "ranges": 1, "runs": 1}));
    bench.diff("raw", 3, &[(0, 9)]);
    bench.done("pack raw=@raw dir=@three kind=diff parent=@two");
    assert_eq!(shown("three"), set);
    bench.done("merge dir=@two out=@merged");
    assert_eq!(shown("merged"), set);
    bench.done("rebase dir=@three parent=@one");
    assert_eq!(shown("three"), set);
    bench.done("merge dir=@three");
    assert_eq!(shown("three"), set);
    fs::write(bench.path("two/snapfile"), "state").unwrap();
    fs::write(bench.path("disk"), "disk").unwrap();
    bench.done("template dir=@two rootfs=@disk out=@template");
    assert_eq!(shown("template"), set);
    for dir in ["three", "merged", "template"] {
        bench.done(&format!("verify dir=@{dir}"));
    }
    // One that is not this image's stays where it is.
    assert_eq!(shown("one"), Value::Null);
    fs::copy(bench.path("two/workingset"), bench.path("one/workingset")).unwrap();
    assert_eq!(shown("one"), Value::Null);
    bench.diff("raw", 3, &[]);
    bench.done("pack raw=@raw dir=@four kind=diff parent=@one");
    assert!(!bench.path("four/workingset").exists());
    bench.done("verify dir=@one");
    fs::write(bench.path("one/workingset"), "{").unwrap();
    let refused = bench.snap("verify dir=@one").reply();
    assert!(refused["error"]["message"].as_str().unwrap().contains("workingset: not JSON"), "{refused}");
    bench.done("delete dir=@one");
}

#[test]
fn inspect_says_what_each_build_holds_and_how_memory_is_scattered() {
    let bench = Bench::new();
    bench.full("raw", &[1, 1, 0, 1, 0, 0, 1, 1, 1, 0]);
    bench.done("pack raw=@raw dir=@one kind=full checksums:=false");
    bench.diff("raw", 10, &[(7, 2)]);
    bench.done("pack raw=@raw dir=@two kind=diff parent=@one");
    bench.working_set("two", &[(0, 1), (7, 2)]);
    let shown = bench.done("inspect dir=@two");
    assert_eq!(shown["zero_share"], json!(0.4));
    // 1 1 | 0 | 1 | 0 0 | 1 | 2 | 1 | 0
    assert_eq!(shown["runs"], json!({"stored": 5, "zero": 3, "mean": 1.2, "longest": 2}));
    assert_eq!(shown["workingset"], json!({"bytes": 3 * PAGE, "ranges": 2, "runs": 1}));
    let diffs = shown["diffs"].as_array().unwrap();
    let row = |diff: &Value| json!([diff["blocks"], diff["share"], diff["runs"], diff["checksums"]]);
    assert_eq!(
        diffs.iter().map(row).collect::<Vec<_>>(),
        [json!([5, 0.5, 4, false]), json!([1, 0.1, 1, true])]
    );
    let svg = |dir: &str| {
        bench.done(&format!("map dir=@{dir} svg=@map.svg"));
        fs::read_to_string(bench.path("map.svg")).unwrap()
    };
    let map = svg("two");
    assert!(map.contains("working set 12 KiB") && map.matches("r=\"1.5\"").count() == 3, "{map}");
    assert!(!svg("one").contains("working set"));
}

#[test]
fn the_map_shows_each_build_and_the_zeros() {
    let bench = Bench::new();
    bench.chain();
    assert_eq!(bench.done("map dir=@two svg=@map.svg")["builds"], 2);
    let svg = fs::read_to_string(bench.path("map.svg")).unwrap();
    for dir in ["one", "two"] {
        let build = bench.done(&format!("inspect dir=@{dir}"))["build"].as_str().unwrap().to_owned();
        assert!(svg.contains(&build), "{dir} in {svg}");
    }
    assert!(svg.contains("zeros 0 KiB") && svg.trim_end().ends_with("</svg>"), "{svg}");
    // Three blocks: one of the first build, then two of the second.
    let cells: Vec<_> = svg.lines().filter(|line| line.contains("height=\"7\"")).collect();
    assert_eq!(cells.len(), 2, "{svg}");
    assert!(cells[0].contains("width=\"7\"") && cells[1].contains("width=\"14\""), "{svg}");
}

#[test]
fn a_stored_byte_that_changed_is_found_and_where() {
    let bench = Bench::new();
    // 1 MiB of memory without a zero, and a diff of four pages of it.
    let mut pages: Vec<u8> = (0..256).map(|page| page as u8 | 1).collect();
    bench.full("raw", &pages);
    let full = bench.done("pack raw=@raw dir=@one kind=full");
    bench.diff("raw", 256, &[(3, 8), (9, 90), (10, 10), (200, 12)]);
    let diff = bench.done("pack raw=@raw dir=@two kind=diff parent=@one checksums:=true mode=copy");
    let verified = bench.done("verify dir=@two")["verified"].clone();
    assert_eq!((&verified["checksummed"], &verified["bytes"]), (&(260 * PAGE).into(), &(260 * PAGE).into()));
    bench.done("merge dir=@two out=@merged");
    assert_eq!(bench.done("verify dir=@merged")["verified"]["checksummed"], 256 * PAGE);

    let strike = |reply: &Value, at: u64| {
        let path = bench.path("two").join(format!("memfile.{}", reply["build"].as_str().unwrap()));
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    };
    strike(&full, 77 * PAGE as u64 + 5);
    strike(&diff, 2 * PAGE as u64 + 4095);
    let error = bench.snap("verify dir=@two").status_is(9).reply()["error"].clone();
    let faults = error["detail"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{error}");
    for (fault, (build, at)) in faults.iter().zip([(&full, 77), (&diff, 2)]) {
        let fault = fault.as_str().unwrap();
        assert!(fault.contains(build["build"].as_str().unwrap()), "{fault}");
        let numbers: Vec<usize> = fault.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(numbers[0] <= at * PAGE && (at + 1) * PAGE <= numbers[1], "page {at}: {fault}");
    }
    // Without checksums nobody can tell.
    for name in names(&bench.path("two")).into_iter().filter(|name| name.ends_with(".sum")) {
        fs::remove_file(bench.path("two").join(name)).unwrap();
    }
    assert_eq!(bench.done("verify dir=@two")["verified"]["checksummed"], 0);
    pages[3] = 8;
    bench.done("verify dir=@merged");
    (pages[9], pages[10], pages[200]) = (90, 10, 12);
    assert!(bench.memory("merged") == pages);
}
