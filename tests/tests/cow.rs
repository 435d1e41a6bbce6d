//! wrenn-cow without device-mapper: private copies, files, refusals. Content is compared with what the test itself
//! wrote, byte for byte.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use wrenn_tests::{Output, Roots, Value, json, skip};

const MIB: usize = 1 << 20;

/// Two roots and an image of 8 MiB, most of it a hole.
struct Bench {
    roots: Roots,
    image: PathBuf,
    content: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let roots = Roots::new();
        let image = roots.root().join("images/minimal/rootfs.ext4");
        let mut content = vec![0; 8 * MIB];
        pattern(1, &mut content[MIB..2 * MIB]);
        pattern(2, &mut content[7 * MIB + 512..7 * MIB + 70_000]);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        let file = File::create(&image).unwrap();
        file.set_len(content.len() as u64).unwrap();
        for at in
            (0..content.len()).step_by(4096).filter(|&at| content[at..at + 4096].iter().any(|&b| b != 0))
        {
            file.write_all_at(&content[at..at + 4096], at as u64).unwrap();
        }
        Self { roots, image, content }
    }

    fn cow(&self, args: &[&str]) -> Output {
        self.roots.program("wrenn-cow").args(args).run()
    }

    fn with(&self, verb: &str, more: &[&str], document: &Value) -> Output {
        self.roots.program("wrenn-cow").args([verb, "-"]).args(more).stdin(document.to_string()).run()
    }

    fn create(&self, id: &str) -> Value {
        let request = json!({"id": id, "rootfs": self.image, "kind": "clone"});
        self.with("create", &[], &request).success().reply()
    }

    fn live(&self, id: &str) -> PathBuf {
        self.roots.root().join("sandboxes").join(id).join("live/rootfs.cow")
    }

    /// Every file and directory below both roots.
    fn everything(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![self.roots.dir().to_owned()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                found.push(entry.path().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    left.push(entry.path());
                }
            }
        }
        found.sort();
        found
    }
}

/// Numbers that differ everywhere, the same for the same seed.
fn pattern(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8;
    }
}

fn path(value: &Value) -> &Path {
    Path::new(value.as_str().unwrap_or_else(|| panic!("a path, not {value}")))
}

fn same(path: &Path, content: &[u8]) {
    let found = fs::read(path).unwrap();
    assert_eq!(found.len(), content.len(), "{}", path.display());
    let differs = found.iter().zip(content).position(|(found, expected)| found != expected);
    assert_eq!(differs, None, "first difference in {}", path.display());
}

fn refused(output: Output, status: i32, code: &str, mentions: &str) {
    let output = output.status_is(status);
    let reply = output.reply();
    let error = &reply["error"];
    assert_eq!(error["code"], code, "{}: {reply}", output.line);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(mentions), "{}: {message:?} should mention {mentions:?}", output.line);
}

#[test]
fn a_copy_lives_through_pause_resume_and_deletion() {
    let bench = Bench::new();
    let document = bench.create("sb-1");
    let cow = &document["cow"];
    assert_eq!(cow["kind"], "clone");
    assert_eq!(cow["device"], cow["file"]);
    assert_eq!(path(&cow["file"]), bench.live("sb-1"));
    assert_eq!((cow["origin_bytes"].as_u64(), cow["file_bytes"].as_u64()), (Some(8 << 20), Some(8 << 20)));
    same(path(&cow["device"]), &bench.content);
    let metadata = fs::metadata(bench.live("sb-1")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "a guest's disk is nobody else's to read");
    assert!(metadata.blocks() * 512 < 3 << 20, "holes stay holes");

    // The guest writes.
    let mut content = bench.content.clone();
    pattern(3, &mut content[3 * MIB..3 * MIB + 12_345]);
    content[MIB..MIB + 65536].fill(0);
    let device = File::options().write(true).open(path(&cow["device"])).unwrap();
    device.write_all_at(&content[3 * MIB..4 * MIB], 3 << 20).unwrap();
    device.write_all_at(&content[MIB..MIB + 65536], 1 << 20).unwrap();
    drop(device);
    same(&bench.image, &bench.content);
    let usage = bench.with("status", &[], &document).success().reply()["cow"]["usage"].clone();
    assert_eq!(usage["state"], "ok");
    assert_eq!(usage["total_sectors"], 16384);
    assert_eq!(usage["used_sectors"].as_u64(), Some(fs::metadata(bench.live("sb-1")).unwrap().blocks()));

    // Pause.
    let generation = bench.roots.root().join("sandboxes/sb-1/gen-0001");
    fs::create_dir(&generation).unwrap();
    let mut document = document;
    document["snapshot"] = json!({"dir": generation, "kind": "full"});
    let paused = bench.with("remove", &[], &document).success().reply();
    let frozen = generation.join("rootfs.cow");
    assert_eq!(path(&paused["cow"]["file"]), frozen);
    for gone in ["device", "name", "origin", "loop", "usage"] {
        assert_eq!(paused["cow"].get(gone), None, "{gone} in {}", paused["cow"]);
    }
    same(&frozen, &content);
    assert!(!bench.live("sb-1").parent().unwrap().exists());
    let meta: Value = serde_json::from_slice(&fs::read(generation.join("rootfs.meta")).unwrap()).unwrap();
    assert_eq!(path(&meta["base_template"]), bench.image);

    // The same again, also with the document of before: as if the first reply had been lost.
    for document in [&paused, &document] {
        let again = bench.with("remove", &[], document).success().reply();
        assert_eq!(again["cow"], paused["cow"]);
        same(&frozen, &content);
    }

    // Resume: the paused file is not touched by what the guest writes now.
    let running = bench.with("restore", &[], &paused).success().reply();
    assert_eq!(path(&running["cow"]["frozen"]), frozen);
    assert_ne!(running["cow"]["file"], paused["cow"]["file"]);
    same(path(&running["cow"]["device"]), &content);
    let stamp = fs::metadata(&frozen).unwrap();
    let device = File::options().write(true).open(path(&running["cow"]["device"])).unwrap();
    device.write_all_at(&[9; 4096], 5 << 20).unwrap();
    same(&frozen, &content);
    let now = fs::metadata(&frozen).unwrap();
    assert_eq!((now.mtime_nsec(), now.ctime_nsec()), (stamp.mtime_nsec(), stamp.ctime_nsec()));

    // As a template.
    let out = bench.roots.dir().join("flat");
    bench.with("flatten", &[&format!("out={}", out.display())], &paused).success();
    same(&out, &content);
    refused(
        bench.with("flatten", &[&format!("out={}", out.display())], &running),
        4,
        "cow.exists",
        "flat exists already",
    );
    same(&out, &content);

    // Deleting what runs, or what a failed resume left, does not take the pause with it.
    let deleted = bench.with("delete", &[], &running).success().reply();
    assert_eq!(deleted.get("cow"), None);
    bench.with("delete", &[], &paused).success();
    bench.with("delete", &[], &running).success();
    same(&frozen, &content);
    assert!(!bench.live("sb-1").exists());
    assert_eq!(bench.cow(&["list"]).success().reply(), json!({"disks": [], "loops": []}));
}

#[test]
fn without_a_snapshot_directory_the_file_stays_and_is_restored_under_another_name() {
    let bench = Bench::new();
    let removed = bench.with("remove", &[], &bench.create("sb-1")).success().reply();
    assert_eq!(path(&removed["cow"]["file"]), bench.live("sb-1"));
    let restored = bench.with("restore", &[], &removed).success().reply();
    assert_eq!(path(&restored["cow"]["file"]), bench.live("sb-1").with_file_name("rootfs-2.cow"));
    assert_eq!(path(&restored["cow"]["frozen"]), bench.live("sb-1"));
    same(path(&restored["cow"]["file"]), &bench.content);
    let before = bench.roots.root().join("sandboxes");
    bench.with("delete", &[], &restored).success();
    assert_eq!(fs::read_dir(before).unwrap().count(), 0, "frozen in the live directory is the sandbox's own");
}

#[test]
fn an_image_and_its_changes_are_one_image_without_the_kernel() {
    let bench = Bench::new();
    // Two exceptions, as the kernel writes them: chunk 300 is new, chunk 256 (data in the image) is zeros now.
    let mut store = vec![0; 16 * 4096];
    store[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
    for (at, (old, new)) in [(300_u64, 2_u64), (256, 3)].into_iter().enumerate() {
        store[4096 + 16 * at..][..8].copy_from_slice(&old.to_le_bytes());
        store[4096 + 16 * at + 8..][..8].copy_from_slice(&new.to_le_bytes());
    }
    pattern(7, &mut store[2 * 4096..3 * 4096]);
    let [file, out] = ["changes", "flat"].map(|name| bench.roots.dir().join(name));
    fs::write(&file, &store).unwrap();
    let mut expected = bench.content.clone();
    expected[300 * 4096..301 * 4096].copy_from_slice(&store[2 * 4096..3 * 4096]);
    expected[256 * 4096..257 * 4096].fill(0);

    let request = json!({"file": file, "image": bench.image, "out": out});
    let reply = bench.with("flatten", &[], &request).success().reply();
    assert_eq!(reply, request, "nothing of a request without id is changed");
    same(&out, &expected);
    assert!(!bench.roots.run().exists(), "a request without id touches nothing under WRENN_RUN");
    let zeros = File::open(&out).unwrap();
    let hole = nix::unistd::lseek(&zeros, 256 * 4096, nix::unistd::Whence::SeekHole).unwrap();
    assert_eq!(hole, 256 * 4096, "zeros that were written are a hole");

    // A header that says no.
    for (at, byte) in [(0, 0), (4, 0), (8, 2), (12, 16), (4096 + 8, 1), (4096, 255)] {
        let mut broken = store.clone();
        broken[at] = byte;
        if at == 4096 {
            broken[at..at + 8].fill(255);
        }
        fs::write(&file, &broken).unwrap();
        let request = json!({"file": file, "image": bench.image, "out": bench.roots.dir().join("other")});
        refused(bench.with("flatten", &[], &request), 9, "cow.corrupt", "changes");
        assert!(!bench.roots.dir().join("other").exists());
        if at < 4096 {
            let request = json!({"id": "sb-1", "file": file, "image": bench.image});
            refused(bench.with("restore", &[], &request), 9, "cow.corrupt", "changes");
        }
    }
}

#[test]
fn bad_requests_are_refused_and_leave_nothing() {
    let bench = Bench::new();
    let at = |name: &str| bench.roots.dir().join(name);
    fs::write(at("odd"), [1; 1000]).unwrap();
    fs::write(at("empty"), []).unwrap();
    fs::write(at("bad.cow"), [1; 8192]).unwrap();
    fs::create_dir(at("bad")).unwrap();
    fs::write(at("bad/rootfs.cow"), [1; 8192]).unwrap();
    fs::write(at("bad/rootfs.meta"), "{}").unwrap();
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/rootfs.cow"), "somebody's").unwrap();
    let document = bench.create("sb-9");
    let before = bench.everything();

    let image = &bench.image;
    let create = |more: Value| {
        let mut request = json!({"id": "sb-1", "rootfs": image, "kind": "clone"});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let file = &document["cow"]["file"];
    let table: Vec<(&str, Value, i32, &str, &str)> = vec![
        ("create", json!({"rootfs": image}), 2, "wire.field", "id"),
        ("create", json!({"id": "sb-1"}), 2, "wire.field", "rootfs"),
        ("create", create(json!({"id": "../x"})), 2, "wire.field", "id"),
        ("create", create(json!({"rootfs": 7})), 2, "wire.field", "rootfs"),
        ("create", create(json!({"kind": "thin"})), 2, "wire.field", "kind"),
        ("create", create(json!({"kind": 1})), 2, "wire.field", "kind"),
        ("create", create(json!({"spec": {"disk_mib": -1}})), 2, "wire.field", "disk_mib"),
        ("create", create(json!({"spec": {"disk_mib": 1_u64 << 60}})), 2, "wire.field", "disk_mib"),
        ("create", create(json!({"rootfs": at("none")})), 3, "cow.image", "none"),
        ("create", create(json!({"rootfs": at("")})), 2, "cow.image_kind", "not a file"),
        ("create", create(json!({"rootfs": "/dev/null"})), 2, "cow.image_kind", "/dev/null"),
        ("create", create(json!({"rootfs": at("odd")})), 2, "cow.image_size", "1000"),
        ("create", create(json!({"rootfs": at("empty")})), 2, "cow.image_size", "0"),
        ("create", create(json!({"id": "sb-9"})), 4, "cow.exists", "rootfs.cow"),
        ("create", create(json!({"file": at("odd")})), 4, "cow.exists", "odd"),
        ("create", create(json!({"file": at("odd/rootfs.cow")})), 4, "cow.exists", "odd"),
        ("restore", json!({"id": "sb-1", "rootfs": image}), 2, "wire.field", "file"),
        ("restore", json!({"id": "sb-1", "image": image, "file": at("none")}), 3, "cow.file_gone", "none"),
        ("restore", json!({"id": "sb-1", "file": at("bad.cow")}), 2, "wire.field", "rootfs"),
        (
            "restore",
            json!({"id": "sb-1", "image": image, "file": at("bad.cow")}),
            9,
            "cow.corrupt",
            "bad.cow",
        ),
        ("restore", json!({"id": "sb-1", "file": at("bad/rootfs.cow")}), 9, "cow.meta", "base_template"),
        (
            "restore",
            json!({"id": "sb-1", "image": image, "file": file, "kind": "clone", "origin_bytes": 4096}),
            4,
            "cow.image_changed",
            "4096",
        ),
        (
            "restore",
            json!({"id": "sb-1", "image": image, "file": at("bad.cow"), "kind": "clone"}),
            4,
            "cow.image_changed",
            "8192",
        ),
        ("remove", json!({"cow": {"file": file}}), 2, "wire.field", "id"),
        (
            "remove",
            json!({"id": "sb-1", "cow": {"file": at("none"), "image": image, "kind": "clone"}}),
            3,
            "cow.file_gone",
            "none",
        ),
        (
            "remove",
            json!({"id": "sb-1", "cow": {"file": at("none"), "image": image, "kind": "clone"}, "snapshot": {"dir": at("bad.d")}}),
            3,
            "cow.file_gone",
            "none",
        ),
        (
            "remove",
            json!({"id": "sb-9", "cow": {"file": file, "image": image, "kind": "clone"}, "snapshot": {"dir": at("bad.d")}}),
            3,
            "cow.io",
            "bad.d",
        ),
        (
            "remove",
            json!({"id": "sb-9", "cow": {"file": file, "image": image, "kind": "clone"}, "snapshot": {"dir": at("full")}}),
            4,
            "cow.exists",
            "full/rootfs.cow",
        ),
        ("delete", json!({"cow": {"file": file}}), 2, "wire.field", "id"),
        ("flatten", json!({"file": file, "kind": "clone"}), 2, "wire.field", "out"),
        ("flatten", json!({"out": at("flat")}), 2, "wire.field", "file"),
        (
            "flatten",
            json!({"file": at("none"), "kind": "clone", "out": at("flat")}),
            3,
            "cow.file_gone",
            "none",
        ),
        ("flatten", json!({"file": file, "kind": "clone", "out": at("none/flat")}), 3, "cow.io", "none"),
        ("flatten", json!({"file": file, "out": at("flat")}), 2, "wire.field", "rootfs"),
        ("flatten", json!({"file": file, "image": at("none"), "out": at("flat")}), 3, "cow.image", "none"),
        ("status", json!({}), 2, "wire.field", "id"),
        ("status", json!({"id": "sb-1"}), 3, "cow.no_device", "wrenn-sb-1"),
        (
            "status",
            json!({"id": "sb-1", "cow": {"kind": "clone", "file": at("none")}}),
            3,
            "cow.file_gone",
            "none",
        ),
        ("gc", json!({"keep": "sb-1"}), 2, "wire.field", "keep"),
        ("gc", json!({"keep": ["../x"]}), 2, "wire.field", "keep"),
        ("gc", json!({"min_age_s": -1}), 2, "wire.field", "min_age_s"),
    ];
    for (verb, request, status, code, mentions) in table {
        refused(bench.with(verb, &[], &request), status, code, mentions);
        let mut now = bench.everything();
        now.retain(|path| !path.contains("/run"));
        let mut before = before.clone();
        before.retain(|path| !path.contains("/run"));
        assert_eq!(now, before, "{verb} {request} leaves nothing and takes nothing");
    }
    same(path(file), &bench.content);
}

#[test]
fn a_reply_that_nobody_reads_leaves_no_disk() {
    let bench = Bench::new();
    let rootfs = format!("rootfs={}", bench.image.display());
    let program = bench.roots.program("wrenn-cow").args(["create", "id=sb-1", "kind=clone", &rootfs]);
    assert_eq!(program.run_unread(), Some(8));
    assert!(!bench.roots.root().join("sandboxes").exists());
    let document = bench.create("sb-1");
    let out = bench.roots.dir().join("flat");
    let program = bench.roots.program("wrenn-cow").args(["flatten", "-", &format!("out={}", out.display())]);
    assert_eq!(program.stdin(document.to_string()).run_unread(), Some(8));
    assert!(!out.exists());
}

/// A small file system of its own, gone with the value. `None`, and a report, where it cannot be had.
struct Small(PathBuf);

impl Small {
    fn new(dir: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&dir).unwrap();
        let options = format!("size={size}");
        match mount(Some("small"), &dir, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())) {
            Ok(()) => Some(Self(dir)),
            Err(errno) => {
                skip::here(format!("mounting a tmpfs needs CAP_SYS_ADMIN: {errno}"));
                None
            }
        }
    }

    fn names(&self) -> Vec<String> {
        fs::read_dir(&self.0).unwrap().flatten().map(|entry| entry.path().display().to_string()).collect()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_file_system_ends_it_as_exhausted_and_nothing_is_left() {
    let bench = Bench::new();
    let Some(small) = Small::new(bench.roots.dir().join("small"), "256k") else { return };
    let document = bench.create("sb-1");
    let at = |name: &str| format!("{}/{name}", small.0.display());

    let create = json!({"id": "sb-2", "rootfs": bench.image, "kind": "clone", "file": at("disk")});
    refused(bench.with("create", &[], &create), 6, "cow.io", "disk");
    let out = format!("out={}", at("flat"));
    refused(bench.with("flatten", &[&out], &document), 6, "cow.io", "flat");
    let pause = format!("snapshot.dir={}", small.0.display());
    refused(bench.with("remove", &[&pause], &document), 6, "cow.io", "rootfs.cow");
    assert_eq!(small.names(), [""; 0], "no part of a disk, nor a description of one");
    same(&bench.live("sb-1"), &bench.content);
}

#[test]
fn a_pause_on_another_file_system_is_a_copy() {
    let bench = Bench::new();
    let Some(other) = Small::new(bench.roots.dir().join("other"), "16m") else { return };
    let pause = format!("snapshot.dir={}", other.0.display());
    let paused = bench.with("remove", &[&pause], &bench.create("sb-1")).success().reply();
    same(&other.0.join("rootfs.cow"), &bench.content);
    assert!(fs::metadata(other.0.join("rootfs.cow")).unwrap().blocks() * 512 < 3 << 20, "holes stay holes");
    assert!(!bench.live("sb-1").exists());
    let restored = bench.with("restore", &[], &paused).success().reply();
    same(path(&restored["cow"]["device"]), &bench.content);
}

#[test]
fn gc_takes_what_is_not_kept_locked_or_young_and_only_of_its_own_root() {
    let bench = Bench::new();
    let other = Bench::new();
    for id in ["kept", "locked", "op", "gone"] {
        bench.create(id);
    }
    other.create("gone");
    // What a killed creation leaves where the file system has no files without names, and an empty directory.
    let leftover = bench.live("half").with_file_name(".rootfs-123-0.tmp");
    fs::create_dir_all(leftover.parent().unwrap()).unwrap();
    fs::write(&leftover, "half a disk").unwrap();
    fs::create_dir_all(bench.live("empty").parent().unwrap()).unwrap();
    let strange = bench.live("gone").with_file_name("notes.txt");
    fs::write(&strange, "somebody's").unwrap();

    let young = bench.cow(&["gc", "keep:=[\"kept\"]"]).success().reply();
    assert_eq!(young["removed"], json!([]));
    let lock = |name: &str| {
        let file = File::create(bench.roots.run().join("locks").join(name)).unwrap();
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .unwrap()
    };
    let _held = [lock("locked"), lock("op.op")];
    let reply = bench.cow(&["gc", "keep:=[\"kept\"]", "min_age_s:=0"]).success().reply();
    let removed: Vec<_> =
        reply["removed"].as_array().unwrap().iter().map(|gone| path(&gone["file"])).collect();
    assert_eq!(removed, [bench.live("gone"), leftover.clone()]);
    let left: Vec<_> = reply["left"].as_array().unwrap().iter().map(|left| left["id"].clone()).collect();
    assert_eq!(left, ["locked", "op"]);
    for id in ["kept", "locked", "op"] {
        same(&bench.live(id), &bench.content);
    }
    same(&other.live("gone"), &other.content);
    assert!(strange.exists(), "what is not a disk is not taken");
    assert!(!leftover.exists() && !bench.roots.root().join("sandboxes/empty").exists());
}
