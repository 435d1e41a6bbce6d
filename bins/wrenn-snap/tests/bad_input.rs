//! What wrenn-snap refuses, with which status and in which words, and that it changes nothing then.

mod support;

use std::fs;

use support::{Bench, everything};

/// Command line, exit status, code, and what the message must name.
type Row = (&'static str, i32, &'static str, &'static str);

const REFUSED: &[Row] = &[
    // The request itself.
    ("pak raw=@good dir=@new kind=full", 2, "wire.usage", "pak"),
    ("pack dir=@new kind=full", 2, "wire.field", "raw"),
    ("pack raw=@good kind=full", 2, "wire.field", "dir"),
    ("pack raw=@good dir=@new", 2, "wire.field", "kind"),
    ("pack raw:=7 dir=@new kind=full", 2, "wire.field", "raw"),
    ("pack raw=@good dir=@new kind=half", 2, "wire.field", "kind"),
    ("pack raw=@good dir=@new kind=full mode=fast", 2, "wire.field", "mode"),
    ("pack raw=@good dir=@new kind=full block_size=big", 2, "wire.field", "block_size"),
    ("pack raw=@good dir=@new kind=full block_size:=8192", 2, "snap.field", "block_size"),
    (
        "pack raw=@good dir=@new kind=full build=00000000-0000-0000-0000-000000000000",
        2,
        "wire.field",
        "build",
    ),
    ("pack raw=@good dir=@new kind=full build=../../etc/passwd", 2, "wire.field", "build"),
    // The raw file.
    ("pack raw=@absent dir=@new kind=full", 3, "snap.io", "absent"),
    ("pack raw=@foreign dir=@new kind=full", 2, "snap.io", "foreign"),
    ("pack raw=@empty dir=@new kind=full", 2, "snap.field", "raw"),
    ("pack raw=@odd dir=@new kind=full", 2, "snap.field", "raw"),
    ("pack raw=@good dir=@new kind=full block_size:=2097152", 2, "snap.field", "raw"),
    // Memory that is no file.
    ("pack raw=- dir=@new kind=diff parent=@one", 2, "snap.field", "kind"),
    ("pack raw=- dir=@new kind=full mode=inplace", 2, "snap.field", "mode"),
    ("pack raw=- dir=@new kind=full", 9, "snap.pipe_length", "gave 0 bytes"),
    ("pack raw:={\"pid\":1} dir=@new kind=full", 2, "wire.field", "regions"),
    ("pack raw:={\"pid\":0,\"regions\":[]} dir=@new kind=full", 2, "wire.field", "pid"),
    ("pack raw:={\"pid\":1,\"regions\":[]} dir=@new kind=full", 2, "snap.field", "process 1 has 0 bytes"),
    (
        "pack raw:={\"pid\":1,\"regions\":[[0,100]]} dir=@new kind=full",
        2,
        "snap.field",
        "process 1 has 100 bytes",
    ),
    (
        "pack raw:={\"pid\":2147483647,\"regions\":[[0,4096]]} dir=@new kind=full",
        3,
        "snap.process",
        "process 2147483647 is not there",
    ),
    // The directory.
    ("pack raw=@good dir=@good kind=full", 2, "snap.field", "dir"),
    ("pack raw=@good dir=@absent/new kind=full", 3, "snap.io", "absent/new"),
    ("pack raw=@good dir=@one kind=full", 4, "snap.exists", "one/memfile.header"),
    // The parent.
    ("pack raw=@good dir=@new kind=diff", 2, "snap.field", "parent"),
    ("pack raw=@good dir=@new kind=diff parent=@absent", 3, "snap.io", "absent"),
    ("pack raw=@good dir=@new kind=diff parent=@foreign", 3, "snap.none", "foreign"),
    ("pack raw=@good dir=@new kind=diff parent=@cut", 9, "snap.header", "cut/memfile.header"),
    ("pack raw=@good dir=@new kind=diff parent=@lost", 9, "snap.diff_missing", "lost/memfile."),
    ("pack raw=@good dir=@new kind=full parent=@short", 9, "snap.diff_short", "short/memfile."),
    ("pack raw=@larger dir=@new kind=diff parent=@one", 2, "snap.field", "raw"),
    ("pack raw=@good dir=@new kind=diff parent=@one block_size:=2097152", 2, "snap.field", "block_size"),
    (
        "pack raw=@good dir=@new kind=diff parent=@named build=aaaaaaaa-0000-4000-8000-000000000001",
        2,
        "snap.field",
        "build",
    ),
    // The discarded ranges.
    ("pack raw=@good dir=@new kind=diff parent=@one removed=@absent", 3, "snap.io", "absent"),
    ("pack raw=@good dir=@new kind=diff parent=@one removed=@good", 2, "wire.field", "removed"),
    ("pack raw=@good dir=@new kind=diff parent=@one removed:=[[0]]", 2, "wire.field", "removed"),
    ("pack raw=@good dir=@new kind=diff parent=@one removed:=[[1,4096]]", 2, "snap.field", "removed"),
    ("pack raw=@good dir=@new kind=diff parent=@one removed:=[[8192,8192]]", 2, "snap.field", "removed"),
    ("pack raw=@good dir=@new kind=diff parent=@one uffd.removed=@absent", 3, "snap.io", "absent"),
    // Reading.
    ("unpack dir=@one", 2, "wire.field", "raw"),
    ("unpack dir=@absent raw=@out", 3, "snap.io", "absent"),
    ("unpack dir=@foreign raw=@out", 3, "snap.none", "foreign"),
    ("unpack dir=@lost raw=@out", 9, "snap.diff_missing", "lost/memfile."),
    ("unpack dir=@one raw=@foreign", 2, "snap.field", "raw"),
    ("unpack dir=@one raw=@absent/out", 3, "snap.io", "absent"),
    ("merge dir=@cut", 9, "snap.header", "cut/memfile.header"),
    ("merge dir=@short", 9, "snap.diff_short", "short/memfile."),
    ("merge dir=@one out=@two", 4, "snap.exists", "two/memfile.header"),
    ("merge dir=@one out=@good", 2, "snap.field", "out"),
    ("unpack dir=@one raw=@out offset:=12288", 2, "snap.field", "offset"),
    ("unpack dir=@one raw=@out offset:=4096 length:=8193", 2, "snap.field", "8193 bytes from 4096 on"),
    ("unpack dir=@one raw=@out length:=0", 2, "snap.field", "0 bytes from 0 on"),
    ("unpack dir=@one raw=@out offset:=1 length:=18446744073709551615", 2, "snap.field", "offset"),
    ("rebase dir=@one", 2, "wire.field", "parent"),
    ("rebase dir=@one parent=@absent", 3, "snap.io", "absent"),
    ("rebase dir=@one parent=@cut", 9, "snap.header", "cut/memfile.header"),
    ("rebase dir=@lost parent=@one", 9, "snap.diff_missing", "lost/memfile."),
    ("rebase dir=@one parent=@huge", 2, "snap.field", "parent"),
    ("rebase dir=@one parent=@two out=@two", 4, "snap.exists", "two/memfile.header"),
    ("prune dir=@absent", 3, "snap.io", "absent"),
    ("prune dir=@foreign", 3, "snap.none", "foreign"),
    ("prune dir=@lost", 9, "snap.diff_missing", "lost/memfile."),
    ("prune dir=@cut", 9, "snap.header", "cut/memfile.header"),
    ("inspect dir=@good", 3, "snap.io", "good"),
    ("inspect dir=@cut", 9, "snap.header", "cut/memfile.header"),
    ("verify dir=@absent", 3, "snap.io", "absent"),
    ("verify dir=@foreign", 9, "snap.faults", "memfile.header is missing"),
    ("verify dir=@cut", 9, "snap.faults", "truncated"),
    ("verify dir=@lost", 9, "snap.faults", "lost/memfile."),
    ("verify dir=@short", 9, "snap.faults", "short/memfile."),
    ("map dir=@one", 2, "wire.field", "svg"),
    ("map dir=@one svg=@foreign", 2, "snap.field", "svg"),
    // Templates and removal.
    ("template dir=@one rootfs=@good out=@new", 3, "snap.no_state", "one"),
    ("template dir=@paused out=@new", 2, "wire.field", "rootfs"),
    (
        "template id=sb-1 rootfs=@good snapshot.dir=@paused snapshot.out=@new",
        2,
        "wire.field",
        "snapshot.rootfs",
    ),
    ("template dir=@paused rootfs=@absent out=@new", 3, "snap.io", "absent"),
    ("template dir=@paused rootfs=@good out=@foreign", 4, "snap.exists", "foreign"),
    ("template dir=@paused rootfs=@good out=@absent/new", 3, "snap.io", "absent"),
    ("template dir=@paused rootfs=@good out=@new meta=text", 2, "wire.field", "meta"),
    ("delete dir:=null", 2, "wire.field", "dir"),
    ("delete dir=@good", 4, "snap.not_a_snapshot", "good"),
    ("delete dir=@foreign", 4, "snap.not_a_snapshot", "notes.txt"),
    ("delete dir=@link", 4, "snap.not_a_snapshot", "link"),
];

/// Snapshots good and bad, and files that are none.
fn host() -> Bench {
    let bench = Bench::new();
    bench.chain();
    bench.full("good", &[7, 7, 7]);
    bench.full("larger", &[7, 7, 7, 7]);
    fs::write(bench.path("empty"), "").unwrap();
    fs::write(bench.path("odd"), [1; 4097]).unwrap();
    fs::create_dir(bench.path("foreign")).unwrap();
    fs::write(bench.path("foreign/notes.txt"), "not ours").unwrap();
    for name in ["cut", "lost", "short", "named", "paused"] {
        bench.full("raw", &[1, 2, 3]);
        bench
            .done(&format!("pack raw=@raw dir=@{name} kind=full build=aaaaaaaa-0000-4000-8000-000000000001"));
    }
    bench.full("raw", &[1; 512]);
    bench.done("pack raw=@raw dir=@huge kind=full block_size:=2097152");
    let diff = |name: &str| bench.path(name).join("memfile.aaaaaaaa-0000-4000-8000-000000000001");
    let header = fs::read(bench.path("cut/memfile.header")).unwrap();
    fs::write(bench.path("cut/memfile.header"), &header[..70]).unwrap();
    fs::remove_file(diff("lost")).unwrap();
    fs::File::options().write(true).open(diff("short")).unwrap().set_len(4096).unwrap();
    fs::write(bench.path("paused/snapfile"), "state").unwrap();
    std::os::unix::fs::symlink("one", bench.path("link")).unwrap();
    bench
}

#[test]
fn what_can_never_work_is_refused_by_name_and_changes_nothing() {
    let bench = host();
    let before = everything(bench.roots.dir());
    for (line, status, code, named) in REFUSED {
        let output = bench.snap(line).status_is(*status);
        let error = &output.reply()["error"];
        assert_eq!(error["code"], *code, "{line}: {error}");
        assert!(error["message"].as_str().unwrap().contains(named), "{line}: {error}");
        assert_eq!(error["tool"], "wrenn-snap");
        let kind =
            ["", "internal", "invalid", "not_found", "conflict", "", "", "", "", "corrupt"][*status as usize];
        assert_eq!(error["kind"], kind, "{line}: {error}");
        let after = everything(bench.roots.dir());
        assert!(after == before, "{line} changed {:?}", changed(&before, &after));
    }
}

type Everything = std::collections::BTreeMap<std::path::PathBuf, Option<Vec<u8>>>;

fn changed<'a>(before: &'a Everything, after: &'a Everything) -> Vec<&'a std::path::PathBuf> {
    let names = before.keys().chain(after.keys());
    names.filter(|name| before.get(*name) != after.get(*name)).collect()
}

#[test]
fn verify_names_every_fault_at_once() {
    let bench = host();
    let dir = bench.path("two");
    let header = fs::read(dir.join("memfile.header")).unwrap();
    // The second record begins too late, the last one has no length; both diff files go wrong as well.
    let mut bad = header.clone();
    bad[64 + 40] = 1;
    bad[header.len() - 40 + 8..header.len() - 40 + 16].fill(0);
    fs::write(dir.join("memfile.header"), bad).unwrap();
    let mut diffs: Vec<_> = support::names(&dir).into_iter().filter(|name| name.len() == 44).collect();
    assert_eq!(diffs.len(), 2);
    fs::remove_file(dir.join(diffs.remove(0))).unwrap();
    fs::File::options().write(true).open(dir.join(&diffs[0])).unwrap().set_len(1).unwrap();
    fs::write(dir.join("meta.json"), "{").unwrap();
    fs::write(dir.join("snapfile"), "").unwrap();
    fs::write(dir.join("rootfs.cow"), "cow").unwrap();

    let error = bench.snap("verify dir=@two").status_is(9).reply()["error"].clone();
    let faults: Vec<_> =
        error["detail"].as_array().unwrap().iter().map(|fault| fault.as_str().unwrap()).collect();
    for expected in [
        "record 1 begins at 4097",
        "has length 0",
        "is missing, and",
        "has 1 bytes, its header refers to",
        "meta.json is not JSON",
        "snapfile is empty",
        "rootfs.meta is missing",
    ] {
        assert!(faults.iter().any(|fault| fault.contains(expected)), "{expected} in {faults:#?}");
        assert!(error["message"].as_str().unwrap().contains(expected), "{expected} in the message");
    }
}
