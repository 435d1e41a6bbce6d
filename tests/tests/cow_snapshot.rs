//! wrenn-cow with device-mapper: what a guest would write goes through the mapped device, and what the device, the
//! flattened image and a restored disk hold is compared with a model of the disk in memory. The kernel's objects are
//! looked for in /sys and by dmsetup, not asked of wrenn-cow.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use wrenn_tests::{Output, Program, Roots, Value, json, kernel, skip};

const MIB: usize = 1 << 20;

/// Two roots with an image of 6 MiB, more than two areas of exceptions long. When it goes, the kernel must hold nothing more than before.
struct Bench {
    roots: Roots,
    image: PathBuf,
    content: Vec<u8>,
    _turn: Option<Flock<File>>,
}

impl Bench {
    /// `None`, and a report, where there is no device-mapper.
    fn new() -> Option<Self> {
        if let Err(error) = File::open("/dev/mapper/control") {
            skip::here(format!("needs device-mapper (scripts/lab has it): {error}"));
            return None;
        }
        // Names of devices are the host's: one test at a time.
        let turn = File::create(std::env::temp_dir().join("wrenn-tests.turn")).unwrap();
        let turn = Flock::lock(turn, FlockArg::LockExclusive).map_err(|(_, errno)| errno).unwrap();
        Some(Self::with_turn(Some(turn)))
    }

    /// A second root on the same host.
    fn another(&self) -> Self {
        Self::with_turn(None)
    }

    fn with_turn(turn: Option<Flock<File>>) -> Self {
        let roots = Roots::new();
        let image = roots.root().join("images/minimal/rootfs.ext4");
        let mut content = vec![0; 6 * MIB];
        Random(1).fill(&mut content[MIB..2 * MIB]);
        Random(2).fill(&mut content[5 * MIB..]);
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        let file = File::create(&image).unwrap();
        file.set_len(content.len() as u64).unwrap();
        file.write_all_at(&content[MIB..2 * MIB], MIB as u64).unwrap();
        file.write_all_at(&content[5 * MIB..], 5 * MIB as u64).unwrap();
        Self { roots, image, content, _turn: turn }
    }

    fn cow(&self, args: &[&str]) -> Program {
        self.roots.program("wrenn-cow").args(args)
    }

    fn with(&self, verb: &str, more: &[&str], document: &Value) -> Output {
        self.cow(&[verb, "-"]).args(more).stdin(document.to_string()).run()
    }

    fn request(&self, id: &str) -> Value {
        json!({"id": id, "rootfs": self.image})
    }

    fn create(&self, id: &str) -> Value {
        self.with("create", &[], &self.request(id)).success().reply()
    }

    fn generation(&self, id: &str, number: u32) -> PathBuf {
        let dir = self.roots.root().join(format!("sandboxes/{id}/gen-{number:04}"));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Loop devices, mapped devices and nodes that are there now and were not.
    fn left(&self) -> Vec<String> {
        kernel::traces(&self.roots.marks()).into_iter().collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.cow(&["gc", "min_age_s:=0"]).run();
        } else {
            assert_eq!(self.left(), [""; 0], "left behind");
        }
    }
}

/// The same numbers for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for eight in bytes.chunks_exact_mut(8) {
            eight.copy_from_slice(&self.next().to_le_bytes());
        }
    }
}

fn path(value: &Value) -> &Path {
    Path::new(value.as_str().unwrap_or_else(|| panic!("a path, not {value}")))
}

/// Writes like a guest: pieces of sectors anywhere, some of them zeros, and the same to the model.
fn scribble(device: &Path, model: &mut [u8], seed: u64, writes: usize) {
    let file = File::options().write(true).open(device).unwrap();
    let mut random = Random(seed);
    for _ in 0..writes {
        let length = 512 * (1 + random.below(40));
        let at = 512 * random.below((model.len() - length) / 512 + 1);
        let piece = &mut model[at..at + length];
        if random.below(4) == 0 {
            piece.fill(0)
        } else {
            random.fill(piece)
        }
        file.write_all_at(piece, at as u64).unwrap();
    }
    file.sync_all().unwrap();
}

/// What a file or a device holds, past the page cache where that can be.
fn same(path: &Path, model: &[u8]) {
    let file = File::open(path).unwrap();
    // BLKFLSBUF is what drops a device's cache; a file's stays, and is what its other readers see too.
    if path.starts_with("/dev") {
        let _ = Command::new("blockdev").args(["--flushbufs".as_ref(), path.as_os_str()]).status();
    }
    let mut found = vec![0; model.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    if found != model {
        let differs = found.iter().zip(model).position(|(found, model)| found != model);
        panic!("{} differs from byte {differs:?} on", path.display());
    }
    let end = file.read_at(&mut [0], model.len() as u64).unwrap();
    assert_eq!(end, 0, "{} is longer than its model", path.display());
}

fn refused(output: Output, status: i32, code: &str, mentions: &str) {
    let output = output.status_is(status);
    let reply = output.reply();
    assert_eq!(reply["error"]["code"], code, "{}: {reply}", output.line);
    let message = reply["error"]["message"].as_str().unwrap();
    assert!(message.contains(mentions), "{}: {message:?} should mention {mentions:?}", output.line);
}

#[test]
fn privileged_a_disk_holds_what_was_written_through_pause_resume_and_flatten() {
    let Some(bench) = Bench::new() else { return };
    let mut model = bench.content.clone();
    let document = bench.create("sb-1");
    let cow = &document["cow"];
    assert_eq!((&cow["kind"], &cow["name"]), (&json!("snapshot"), &json!("wrenn-sb-1")));
    let device = path(&cow["device"]).to_owned();
    assert_eq!(device, Path::new("/dev/mapper/wrenn-sb-1"));
    assert_eq!(cow["origin_bytes"].as_u64(), Some(6 << 20));
    assert_eq!(fs::metadata(path(&cow["file"])).unwrap().len(), cow["file_bytes"].as_u64().unwrap());
    let table = Command::new("dmsetup").args(["table", "wrenn-sb-1"]).output().unwrap().stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.starts_with("0 12288 snapshot ") && table.trim_end().ends_with(" PO 8"), "{table}");
    same(&device, &model);

    scribble(&device, &mut model, 10, 300);
    same(&device, &model);
    same(&bench.image, &bench.content);
    let usage = bench.with("status", &[], &document).success().reply()["cow"]["usage"].clone();
    let said = Command::new("dmsetup").args(["status", "wrenn-sb-1"]).output().unwrap().stdout;
    let fill = format!("{}/{} {}", usage["used_sectors"], usage["total_sectors"], usage["metadata_sectors"]);
    assert!(String::from_utf8(said).unwrap().contains(&fill), "{usage}");
    assert_eq!(usage["state"], "ok");

    // While it is up.
    let live = bench.roots.dir().join("flat-live");
    bench.with("flatten", &[&format!("out={}", live.display())], &document).success();
    same(&live, &model);
    scribble(&device, &mut model, 11, 20);
    // Without the id it cannot be held still.
    let request = json!({"file": cow["file"], "image": bench.image, "out": bench.roots.dir().join("torn")});
    refused(bench.with("flatten", &[], &request), 4, "cow.busy", "rootfs.cow");

    // Pause and resume, three times, each on top of the last; every pause stays what it was.
    let mut document = document;
    let mut pauses: Vec<(PathBuf, Vec<u8>, Vec<u8>)> = Vec::new();
    for number in 1..=3 {
        document["snapshot"] = json!({"dir": bench.generation("sb-1", number)});
        let paused = bench.with("remove", &[], &document).success().reply();
        assert_eq!(bench.left(), [""; 0], "a paused disk has nothing in the kernel");
        let again = bench.with("remove", &[], &document).success().reply();
        assert_eq!(again["cow"], paused["cow"]);
        let frozen = path(&paused["cow"]["file"]).to_owned();
        assert_eq!(frozen, bench.generation("sb-1", number).join("rootfs.cow"));
        pauses.push((frozen.clone(), fs::read(&frozen).unwrap(), model.clone()));
        document = bench.with("restore", &[], &paused).success().reply();
        assert_eq!(path(&document["cow"]["frozen"]), frozen);
        same(&device, &model);
        scribble(&device, &mut model, 20 + u64::from(number), 60);
        same(&device, &model);
    }
    bench.with("delete", &[], &document).success();
    for (number, (frozen, bytes, model)) in pauses.iter().enumerate() {
        assert!(fs::read(frozen).unwrap() == *bytes, "{} has changed", frozen.display());
        let out = bench.roots.dir().join(format!("flat-{number}"));
        let request = json!({"file": frozen, "image": bench.image, "out": out});
        bench.with("flatten", &[], &request).success();
        same(&out, model);
    }
    // The first generation once more, by the file alone: rootfs.meta beside it names the image.
    let request = json!({"id": "sb-1", "file": pauses[0].0});
    let document = bench.with("restore", &[], &request).success().reply();
    same(&device, &pauses[0].2);
    bench.with("delete", &[], &document).success();
}

#[test]
fn privileged_a_flatten_while_the_guest_writes_is_one_moment_of_the_disk() {
    let Some(bench) = Bench::new() else { return };
    let document = bench.create("sb-1");
    let device = path(&document["cow"]["device"]).to_owned();
    // Block n holds the number of the round that wrote it last; a round writes all blocks in order.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let direct = nix::fcntl::OFlag::O_DIRECT.bits();
            let file = File::options().write(true).custom_flags(direct).open(&device).unwrap();
            let buffer = vec![0; 8192];
            let aligned = buffer.as_ptr().align_offset(4096);
            let mut buffer = buffer;
            let block = &mut buffer[aligned..aligned + 4096];
            for round in 1_u64.. {
                for at in 0..64 {
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        return round;
                    }
                    block[..8].copy_from_slice(&round.to_le_bytes());
                    file.write_all_at(block, at * 4096).unwrap();
                }
            }
            unreachable!()
        });
        for number in 0..4 {
            let out = bench.roots.dir().join(format!("flat-{number}"));
            bench.with("flatten", &[&format!("out={}", out.display())], &document).success();
            let flat = File::open(&out).unwrap();
            let rounds: Vec<u64> = (0..64)
                .map(|at| {
                    let mut word = [0; 8];
                    flat.read_exact_at(&mut word, at * 4096).unwrap();
                    u64::from_le_bytes(word)
                })
                .collect();
            let falls = rounds.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(falls <= 1 && rounds[0] - rounds[63] <= 1, "not one moment: {rounds:?}");
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
    bench.with("delete", &[], &document).success();
}

#[test]
fn privileged_disks_made_at_once_share_the_image_and_nothing_else() {
    let Some(bench) = Bench::new() else { return };
    let children: Vec<_> = (0..6)
        .map(|n| {
            let mut create = bench.cow(&["create", &format!("id=sb-{n}")]);
            let create = create.command().arg(format!("rootfs={}", bench.image.display()));
            create.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let documents: Vec<Value> = children
        .into_iter()
        .map(|child| serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap())
        .collect();
    let origins: BTreeSet<_> =
        documents.iter().map(|document| document["cow"]["origin"].to_string()).collect();
    assert_eq!(origins.len(), 1, "{origins:?}");
    let mut models = vec![bench.content.clone(); documents.len()];
    for (seed, (document, model)) in documents.iter().zip(&mut models).enumerate() {
        scribble(path(&document["cow"]["device"]), model, seed as u64, 40);
    }
    for (document, model) in documents.iter().zip(&models) {
        same(path(&document["cow"]["device"]), model);
    }
    let listed = bench.cow(&["list"]).run().success().reply();
    assert_eq!(listed["disks"].as_array().unwrap().len(), 6);
    let shared: Vec<_> =
        listed["loops"].as_array().unwrap().iter().filter(|entry| entry["shared"] == true).collect();
    assert_eq!(shared.len(), 1);
    assert_eq!(path(&shared[0]["file"]), bench.image);
    for document in &documents {
        bench.with("delete", &[], document).success();
    }
    assert_eq!(bench.cow(&["list"]).run().success().reply(), json!({"disks": [], "loops": []}));
}

#[test]
fn privileged_a_name_is_taken_once_and_another_roots_disk_is_not_touched() {
    let Some(bench) = Bench::new() else { return };
    let other = bench.another();
    let mut model = bench.content.clone();
    let document = bench.create("sb-1");
    let device = path(&document["cow"]["device"]).to_owned();
    scribble(&device, &mut model, 5, 30);

    refused(bench.with("create", &[], &bench.request("sb-1")), 4, "cow.exists", "wrenn-sb-1");
    refused(other.with("create", &[], &other.request("sb-1")), 4, "cow.exists", "another root");
    assert!(!other.roots.root().join("sandboxes").exists());
    // The other root's programs with this root's document, and its collector.
    let stranger = json!({"id": "sb-1", "cow": {"kind": "snapshot", "name": "wrenn-sb-1", "device": device}});
    other.with("remove", &[], &stranger).success();
    other.with("delete", &[], &stranger).success();
    refused(other.with("status", &[], &stranger), 3, "cow.no_device", "wrenn-sb-1");
    let collected = other.cow(&["gc", "min_age_s:=0"]).run().success().reply();
    assert_eq!(collected["removed"], json!([]));
    assert_eq!(other.cow(&["list"]).run().success().reply(), json!({"disks": [], "loops": []}));
    same(&device, &model);
    assert!(device.exists(), "its node too");
    bench.with("delete", &[], &document).success();
}

#[test]
fn privileged_a_disk_in_use_is_refused_with_who_uses_it_and_stays() {
    let Some(bench) = Bench::new() else { return };
    let document = bench.create("sb-1");
    let device = path(&document["cow"]["device"]).to_owned();
    let mut user = Command::new("sleep").arg("300").stdin(File::open(&device).unwrap()).spawn().unwrap();
    for verb in ["remove", "delete"] {
        let output = bench.with(verb, &[], &document);
        refused(output, 4, "cow.busy", &format!("sleep (pid {})", user.id()));
    }
    same(&device, &bench.content);
    // One that goes while it is waited for does not count.
    let (verb, document) = ("delete", document.to_string());
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| bench.cow(&[verb, "-"]).stdin(&document).run());
        std::thread::sleep(Duration::from_millis(500));
        user.kill().unwrap();
        user.wait().unwrap();
        deleting.join().unwrap().success();
    });
}

#[test]
fn privileged_gc_removes_what_was_left_and_wakes_what_is_kept() {
    let Some(bench) = Bench::new() else { return };
    let [kept, gone] = ["kept", "gone"].map(|id| bench.create(id));
    // By hand: a file attached where no device is, a device without a table, a node of a device long gone.
    let live = bench.roots.root().join("sandboxes/half/live/rootfs.cow");
    fs::create_dir_all(live.parent().unwrap()).unwrap();
    fs::write(&live, vec![0; MIB]).unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    };
    run("losetup", &["--find", live.to_str().unwrap()]);
    let uuid = |name: &str| {
        fs::read_dir("/sys/block").unwrap().flatten().find_map(|entry| {
            let read = |what: &str| fs::read_to_string(entry.path().join("dm").join(what)).ok();
            (read("name")?.trim() == name).then(|| read("uuid"))?
        })
    };
    let tagged = uuid("wrenn-kept").unwrap().trim().replace("kept", "bare");
    run("dmsetup", &["create", "wrenn-bare", "--notable", "--uuid", &tagged]);
    run("mknod", &["/dev/mapper/wrenn-old", "b", "253", "200"]);
    bench.cow(&["delete", "id=old"]).run().success();
    assert!(!Path::new("/dev/mapper/wrenn-old").exists());
    run("dmsetup", &["suspend", "wrenn-kept"]);

    // Young things are left, save a device without a table: whoever makes one holds the sandbox's lock meanwhile.
    let young = bench.cow(&["gc", "keep:=[\"kept\"]"]).run().success().reply();
    assert_eq!(young["removed"], json!([{"id": "bare", "device": "wrenn-bare"}]));
    let reply = bench.cow(&["gc", "keep:=[\"kept\"]", "min_age_s:=0"]).run().success().reply();
    let removed: BTreeSet<_> = reply["removed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|gone| {
            let what = ["device", "loop", "file"].into_iter().find(|what| gone.get(*what).is_some()).unwrap();
            format!("{} {what}", gone["id"].as_str().unwrap_or("image"))
        })
        .collect();
    let expected = ["gone device", "gone file", "half file", "half loop"];
    assert_eq!(removed, expected.map(str::to_owned).into());
    assert_eq!(uuid("wrenn-gone"), None);
    assert_eq!(uuid("wrenn-bare"), None);
    assert!(!path(&gone["cow"]["file"]).exists() && !live.exists());
    // Suspended, this would wait for ever.
    let mut model = bench.content.clone();
    scribble(path(&kept["cow"]["device"]), &mut model, 3, 20);
    same(path(&kept["cow"]["device"]), &model);
    bench.with("delete", &[], &kept).success();
}

#[test]
fn privileged_killed_at_any_moment_only_leaves_what_gc_removes() {
    let Some(bench) = Bench::new() else { return };
    let started = Instant::now();
    bench.with("delete", &[], &bench.create("sb-1")).success();
    let whole = started.elapsed() / 2;
    let mut reached = BTreeSet::new();
    for step in 0..14 {
        let mut create = bench.cow(&["create", "id=sb-1"]);
        let create = create.command().arg(format!("rootfs={}", bench.image.display()));
        let mut child = create.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * step / 10);
        child.kill().unwrap();
        child.wait().unwrap();
        reached.insert(bench.left().len());
        bench.cow(&["gc", "min_age_s:=0"]).run().success();
        assert_eq!(bench.left(), [""; 0], "killed {:?} after its start", whole * step / 10);
        assert_eq!(kernel::list(bench.roots.root().join("sandboxes")), [""; 0]);
    }
    assert!(reached.len() > 1, "some were killed with something made, some with nothing: {reached:?}");
    // And in the middle of a removal.
    for step in 0..6 {
        let document = bench.create("sb-1");
        let generation = bench.generation("sb-1", step + 1);
        let mut remove = bench.cow(&["remove", "id=sb-1"]);
        let remove = remove.command().args([
            format!("cow.file={}", document["cow"]["file"].as_str().unwrap()),
            format!("cow.image={}", bench.image.display()),
            format!("snapshot.dir={}", generation.display()),
        ]);
        let mut child = remove.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole * step / 5);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut document = document;
        document["snapshot"] = json!({"dir": generation});
        let paused = bench.with("remove", &[], &document).success().reply();
        assert_eq!(path(&paused["cow"]["file"]), generation.join("rootfs.cow"));
        let restored = bench.with("restore", &[], &paused).success().reply();
        same(path(&restored["cow"]["device"]), &bench.content);
        bench.with("delete", &[], &restored).success();
    }
}

#[test]
fn privileged_what_cannot_be_brought_up_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    // A reply that nobody reads.
    let rootfs = format!("rootfs={}", bench.image.display());
    assert_eq!(bench.cow(&["create", "id=sb-1", &rootfs]).run_unread(), Some(8));
    assert_eq!(bench.left(), [""; 0]);
    assert!(!bench.roots.root().join("sandboxes").exists());

    // A paused disk whose metadata the kernel will not have.
    let mut document = bench.create("sb-1");
    scribble(path(&document["cow"]["device"]), &mut bench.content.clone(), 1, 50);
    document["snapshot"] = json!({"dir": bench.generation("sb-1", 1)});
    let paused = bench.with("remove", &[], &document).success().reply();
    let frozen = path(&paused["cow"]["file"]).to_owned();
    let good = fs::read(&frozen).unwrap();
    let pair = |index: usize| 4096 + 16 * index;
    let damage: [(&str, usize, u64); 4] =
        [("header", 0, 0), ("invalid", 4, 0), ("far", pair(3) + 8, u64::MAX / 4096), ("twice", pair(3), 0)];
    for (what, at, word) in damage {
        let mut bad = good.clone();
        let word =
            if what == "twice" { bad[pair(2)..pair(2) + 8].to_owned() } else { word.to_le_bytes().to_vec() };
        bad[at..at + 8].copy_from_slice(&word);
        fs::write(&frozen, &bad).unwrap();
        refused(bench.with("restore", &[], &paused), 9, "cow.corrupt", "rootfs.cow");
        assert!(fs::read(&frozen).unwrap() == bad, "it is not touched either");
    }
    let data = 4096 * (good.len() / 4096 - 1);
    let cut = good[..data].iter().rposition(|&byte| byte != 0).unwrap() - 4096;
    fs::write(&frozen, &good[..cut]).unwrap();
    refused(bench.with("restore", &[], &paused), 9, "cow.corrupt", "rootfs.cow");
    assert_eq!(bench.left(), [""; 0]);
    assert!(!bench.roots.root().join("sandboxes/sb-1/live").exists());
    fs::write(&frozen, &good).unwrap();
    let restored = bench.with("restore", &[], &paused).success().reply();
    bench.with("delete", &[], &restored).success();
}

#[test]
fn privileged_a_full_file_system_below_a_disk_shows_in_its_status_and_stops_its_restore() {
    let Some(bench) = Bench::new() else { return };
    let small = Small::new(bench.roots.dir().join("small"));
    let mut request = bench.request("sb-1");
    request["file"] = json!(small.0.join("disk"));
    let mut document = bench.with("create", &[], &request).success().reply();
    let usage =
        |document: &Value| bench.with("status", &[], document).success().reply()["cow"]["usage"].clone();
    assert_eq!(usage(&document)["state"], "ok");
    let device = File::options().write(true).open(path(&document["cow"]["device"])).unwrap();
    let _ = device.write_all_at(&vec![7; 4 * MIB], 0).and_then(|()| device.sync_all());
    drop(device);
    assert_eq!(usage(&document)["state"], "invalid");
    document["snapshot"] = json!({"dir": bench.generation("sb-1", 1)});
    let copied = bench.with("remove", &[], &document).success().reply();
    refused(bench.with("restore", &[], &copied), 9, "cow.corrupt", "rootfs.cow");
    bench.with("delete", &[], &copied).success();
    // Not even the header has room.
    fs::write(small.0.join("rest"), vec![1; 2 * MIB]).unwrap_err();
    refused(bench.with("create", &[], &request), 6, "cow.io", "disk");
    drop(small);
}

/// A tmpfs of 1 MiB, gone with the value.
struct Small(PathBuf);

impl Small {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        mount(Some("small"), &dir, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn privileged_a_paused_file_is_shared_not_copied_where_the_file_system_can() {
    let Some(bench) = Bench::new() else { return };
    let mut model = bench.content.clone();
    let mut document = bench.create("sb-1");
    scribble(path(&document["cow"]["device"]), &mut model, 1, 200);
    document["snapshot"] = json!({"dir": bench.generation("sb-1", 1)});
    let paused = bench.with("remove", &[], &document).success().reply();
    let restored = bench.with("restore", &[], &paused).success().reply();
    let [frozen, live] = ["frozen", "file"].map(|name| path(&restored["cow"][name]).to_owned());
    let shared = Command::new("filefrag").arg("-v").arg(&live).output().unwrap().stdout;
    let shared = String::from_utf8_lossy(&shared).contains("shared");
    let is_xfs =
        nix::sys::statfs::statfs(&live).unwrap().filesystem_type() == nix::sys::statfs::XFS_SUPER_MAGIC;
    assert!(shared || !is_xfs, "{} is not a reflink of {}", live.display(), frozen.display());
    assert!(fs::metadata(&live).unwrap().blocks() * 512 < 6 << 20, "holes stay holes");
    bench.with("delete", &[], &restored).success();
}
