//! Root disks: made and removed by wrenn-cow and by a shell script with losetup and dmsetup; and flattened by wrenn-cow
//! and by `dd conv=sparse` from the device, with 5 % of the disk changed, where the file system shares data (the lab's
//! XFS) and where it does not (tmpfs).
//!
//! wrenn-cow is measured within this process, as the supervisor calls it, and as a program, as a shell does (where
//! target/release/wrenn-cow is built). The image is attached all the time, as it is where other sandboxes run.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, SamplingMode};
use wire::{Document, Host, json};

const MIB: u64 = 1 << 20;
/// The disk of the flatten bench.
const DISK: u64 = 512 * MIB;

/// What wrenn-cow does, by hand: `$1` a directory, `$2` the image's loop device.
const CREATE: &str = "
truncate -s 526000K $1/by-hand.cow
loop=$(losetup --find --show --direct-io=on $1/by-hand.cow)
echo \"0 $(blockdev --getsz $2) snapshot $2 $loop PO 8\" | dmsetup create wrenn-by-hand
";

const REMOVE: &str = "
dmsetup remove wrenn-by-hand
losetup -d $(losetup -j $1/by-hand.cow | cut -d: -f1)
rm $1/by-hand.cow
";

fn main() {
    if let Err(error) = File::open("/dev/mapper/control") {
        eprintln!("skipped: cow_disk needs device-mapper (scripts/lab has it): {error}");
        return;
    }
    let mut criterion = Criterion::default().configure_from_args().warm_up_time(Duration::from_secs(1));
    create_and_remove(&mut criterion);
    for (file_system, dir) in [("shared data", "/tmp"), ("no shared data", "/dev/shm")] {
        flatten(&mut criterion, file_system, Path::new(dir));
    }
    criterion.final_summary();
}

/// Two roots with an image of which two fifths are data.
struct Bench {
    dir: tempfile::TempDir,
    host: Host,
    image: PathBuf,
}

impl Bench {
    fn new(below: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("wrenn-bench-").tempdir_in(below).expect("a directory");
        let host = Host::new(dir.path().join("root"), dir.path().join("run"));
        let image = dir.path().join("image");
        let file = File::create(&image).expect("an image");
        file.set_len(DISK).expect("its size");
        let data: Vec<u8> =
            (0..MIB as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
        for at in (0..DISK).step_by(5 * MIB as usize).flat_map(|at| [at, at + MIB]) {
            file.write_all_at(&data, at.min(DISK - MIB)).expect("its data");
        }
        file.sync_all().expect("its data");
        Self { dir, host, image }
    }

    fn call(&self, verb: &str, document: &mut Document) {
        cow::TOOL.call(verb, document, &self.host, wire::Options::default()).expect(verb);
    }

    fn create(&self, id: &str) -> Document {
        let request = json!({"id": id, "rootfs": self.image.to_string_lossy()});
        let mut document = Document::from_value(request).expect("an object");
        self.call("create", &mut document);
        document
    }
}

/// One way to make a disk and to remove it.
struct Way<'a> {
    name: &'a str,
    create: Box<dyn Fn() + 'a>,
    remove: Box<dyn Fn() + 'a>,
}

fn create_and_remove(criterion: &mut Criterion) {
    let bench = Bench::new(Path::new("/tmp"));
    let mut other = bench.create("other");
    let origin: String = other.need("cow.origin").expect("the image's loop device");
    let dir = bench.dir.path();
    let by_hand = |script: &'static str| {
        let (dir, origin) = (dir.to_owned(), origin.clone());
        move || {
            let mut shell = Command::new("sh");
            shell.args(["-ec", script, "sh"]).arg(&dir).arg(&origin);
            assert!(shell.status().expect("sh").success(), "{script}");
        }
    };
    let mut ways = vec![
        Way {
            name: "wrenn-cow, in process",
            create: Box::new(|| drop(bench.create("bench"))),
            remove: Box::new(|| {
                bench.call("delete", &mut Document::from_value(json!({"id": "bench"})).expect("an object"));
            }),
        },
        Way {
            name: "losetup and dmsetup",
            create: Box::new(by_hand(CREATE)),
            remove: Box::new(by_hand(REMOVE)),
        },
    ];
    match program() {
        Some(path) => ways.push(as_program(path, &bench)),
        None => eprintln!("wrenn-cow as a program is left out: cargo build --release --bin wrenn-cow"),
    }
    for (title, half) in [("disk create", 0), ("disk remove", 1)] {
        let mut group = criterion.benchmark_group(title);
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        for way in &ways {
            let round = || [timed(&way.create), timed(&way.remove)][half];
            group.bench_function(way.name, |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| round()).sum::<Duration>());
            });
        }
        group.finish();
    }
    drop(ways);
    bench.call("delete", &mut other);
}

fn timed(step: &dyn Fn()) -> Duration {
    let start = Instant::now();
    step();
    start.elapsed()
}

fn as_program(path: PathBuf, bench: &Bench) -> Way<'_> {
    let call = move |verb: &str| {
        let mut command = Command::new(&path);
        command.args([verb, "id=bench", &format!("rootfs={}", bench.image.display())]).stdout(Stdio::null());
        command.env("WRENN_ROOT", bench.host.root()).env("WRENN_RUN", bench.host.run());
        assert!(command.status().expect("wrenn-cow").success(), "{verb}");
    };
    let again = call.clone();
    Way {
        name: "wrenn-cow, the program",
        create: Box::new(move || call("create")),
        remove: Box::new(move || again("delete")),
    }
}

/// target/release/wrenn-cow, beside target/release/deps/cow_disk-….
fn program() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.ancestors().nth(2)?.join("wrenn-cow");
    path.is_file().then_some(path)
}

fn flatten(criterion: &mut Criterion, file_system: &str, below: &Path) {
    let bench = Bench::new(below);
    let mut document = bench.create("bench");
    let device: String = document.need("cow.device").expect("the device");
    // 5 % of the disk, in pieces of 64 KiB all over it.
    let disk = File::options().write(true).open(&device).expect("the device");
    for at in (0..DISK).step_by(20 * 65_536) {
        disk.write_all_at(&[at as u8 | 1; 65_536], at).expect("a write");
    }
    disk.sync_all().expect("the writes");
    drop(disk);

    let out = bench.dir.path().join("out");
    let timed = |step: &mut dyn FnMut()| {
        let start = Instant::now();
        step();
        let took = start.elapsed();
        std::fs::remove_file(&out).expect("the image");
        took
    };
    let mut group = criterion.benchmark_group(format!("flatten, {file_system}"));
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.bench_function("wrenn-cow", |bencher| {
        let mut step = || {
            let mut request = document.clone();
            request.set("out", out.to_string_lossy().into_owned());
            bench.call("flatten", &mut request);
        };
        bencher.iter_custom(|rounds| (0..rounds).map(|_| timed(&mut step)).sum::<Duration>());
    });
    group.bench_function("dd conv=sparse", |bencher| {
        let mut step = || {
            let mut dd = Command::new("dd");
            dd.arg(format!("if={device}")).arg(format!("of={}", out.display()));
            dd.args(["bs=1M", "conv=sparse,fsync", "status=none"]);
            assert!(dd.status().expect("dd").success());
        };
        bencher.iter_custom(|rounds| (0..rounds).map(|_| timed(&mut step)).sum::<Duration>());
    });
    group.finish();
    bench.call("delete", &mut document);
}
