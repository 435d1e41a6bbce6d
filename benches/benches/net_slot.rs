//! A network slot made and removed: by wrenn-net, and by a shell script with ip and iptables that makes the same. Both on one
//! private host (a network namespace with a /run of its own), as root, each followed at once by the next.
//!
//! wrenn-net is measured within this process, as the supervisor calls it, and as a program, as a shell does (where
//! target/release/wrenn-net is built).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::Criterion;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wire::{Document, Host, json};

const SLOT: u16 = 7;

/// What wrenn-net makes for slot 7, by hand: netns, veth with /31 addresses, tap, routes, forwarding, NAT.
const CREATE: &str = "
ns=wrenn-ns-7 v=wrenn-v-7 host=10.11.0.7 guest=169.254.0.21
ip netns add $ns
ip link add $v type veth peer name eth0 netns $ns
ip addr add 10.12.0.14/31 dev $v
ip link set $v up alias wrenn:0123456789ab:bench
ip -n $ns addr add 10.12.0.15/31 dev eth0
ip -n $ns link set eth0 up
ip -n $ns link set lo up
ip netns exec $ns ip tuntap add dev tap0 mode tap
ip -n $ns link set tap0 address 02:fc:00:00:00:06
ip -n $ns addr add 169.254.0.22/30 dev tap0
ip -n $ns link set tap0 up
ip -n $ns route add default via 10.12.0.14
ip -n $ns neigh add $guest lladdr 02:fc:00:00:00:05 dev tap0 nud permanent
ip netns exec $ns sysctl -qw net.ipv4.ip_forward=1
ip netns exec $ns iptables -t nat -A POSTROUTING -o eth0 -j SNAT --to $host
ip netns exec $ns iptables -t nat -A PREROUTING -i eth0 -d $host -j DNAT --to $guest
ip route add $host/32 via 10.12.0.15 dev $v
iptables -A FORWARD -i $v -j ACCEPT
iptables -A FORWARD -o $v -j ACCEPT
iptables -t nat -A POSTROUTING -s $host -j MASQUERADE
";

const REMOVE: &str = "
ns=wrenn-ns-7 v=wrenn-v-7 host=10.11.0.7
iptables -D FORWARD -i $v -j ACCEPT
iptables -D FORWARD -o $v -j ACCEPT
iptables -t nat -D POSTROUTING -s $host -j MASQUERADE
ip route del $host/32
ip link del $v
ip netns del $ns
";

/// One way to make a slot and to remove it.
struct Way<'a> {
    name: &'a str,
    create: Box<dyn Fn() + 'a>,
    remove: Box<dyn Fn() + 'a>,
}

fn main() {
    if let Err(error) = private_host() {
        eprintln!("skipped: net_slot needs root, ip, iptables and /dev/net/tun: {error}");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory for the roots");
    let host = Host::new(dir.path().join("root"), dir.path().join("run"));
    let mut ways = vec![in_process(&host), script()];
    match program() {
        Some(path) => ways.push(as_program(path, dir.path())),
        None => eprintln!("wrenn-net as a program is left out: cargo build --release --bin wrenn-net"),
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    measure(&mut criterion, "slot create", &ways, 0);
    measure(&mut criterion, "slot remove", &ways, 1);
    criterion.final_summary();
}

/// Times one half of each round, making the slot or removing it.
fn measure(criterion: &mut Criterion, title: &str, ways: &[Way<'_>], half: usize) {
    let mut group = criterion.benchmark_group(title);
    let timed = |step: &dyn Fn()| {
        let start = Instant::now();
        step();
        start.elapsed()
    };
    for way in ways {
        let round = || [timed(&way.create), timed(&way.remove)][half];
        group.bench_function(way.name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| round()).sum::<Duration>());
        });
    }
    group.finish();
}

fn in_process(host: &Host) -> Way<'_> {
    let call = move |verb: &str| {
        let request = json!({"id": "bench", "net": {"slot": SLOT}});
        let mut document = Document::from_value(request).expect("an object");
        net::TOOL.call(verb, &mut document, host, wire::Options::default()).expect(verb);
    };
    Way {
        name: "wrenn-net, in process",
        create: Box::new(move || call("create")),
        remove: Box::new(move || call("remove")),
    }
}

fn as_program(path: PathBuf, dir: &Path) -> Way<'_> {
    let call = move |verb: &str| {
        let mut command = Command::new(&path);
        command.args([verb, "id=bench", &format!("net.slot:={SLOT}")]).stdout(Stdio::null());
        command.env("WRENN_ROOT", dir.join("root")).env("WRENN_RUN", dir.join("run"));
        assert!(command.status().expect("wrenn-net").success(), "{verb}");
    };
    let again = call.clone();
    Way {
        name: "wrenn-net, the program",
        create: Box::new(move || call("create")),
        remove: Box::new(move || again("remove")),
    }
}

fn script() -> Way<'static> {
    let run = |script: &str| {
        let script = format!("set -e\n{script}");
        assert!(Command::new("sh").args(["-c", &script]).status().expect("sh").success(), "{script}");
    };
    Way {
        name: "ip and iptables",
        create: Box::new(move || run(CREATE)),
        remove: Box::new(move || run(REMOVE)),
    }
}

fn program() -> Option<PathBuf> {
    // target/release/deps/net_slot-…
    let path = std::env::current_exe().ok()?.ancestors().nth(2)?.join("wrenn-net");
    path.is_file().then_some(path)
}

/// This thread, and what it starts, sees a host of its own from here on.
fn private_host() -> Result<(), String> {
    for program in ["ip", "iptables"] {
        Command::new(program)
            .arg("-V")
            .stdout(Stdio::null())
            .status()
            .map_err(|error| format!("{program}: {error}"))?;
    }
    let tun = Path::new(sys::tap::DEVICE);
    tun.exists().then_some(()).ok_or("there is no tun device")?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|errno| errno.to_string())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|errno| errno.to_string())?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).map_err(|errno| errno.to_string())
}
