//! A host of the test's own: a network namespace that plays the host's, with a /run of its own. Slots made here collide with
//! no others, and the kernel takes everything away when the test ends, however it ends.

#![allow(dead_code)] // Each test file uses its part.

pub mod guest;
pub mod packet;

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sys::netns;
use wrenn_tests::{Output, Program, Roots, Value, skip};

/// What waits for a packet waits this long at most.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The host's address towards the outside, and the address of somebody there.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// The private host.
pub struct PrivateHost {
    pub roots: Roots,
}

/// Runs a test on a private host, or says why it cannot.
pub fn on_private_host(test: impl FnOnce(&PrivateHost) + Send) {
    let skipped = netns::on_own_thread(|| {
        if let Err(reason) = enter() {
            return Some(reason);
        }
        test(&PrivateHost { roots: Roots::new() });
        None
    });
    if let Some(reason) = skipped {
        skip::here(reason);
    }
}

fn enter() -> Result<(), String> {
    for device in ["/dev/net/tun", "/proc/self/ns/net"] {
        if !Path::new(device).exists() {
            return Err(format!("there is no {device} here"));
        }
    }
    for program in ["ip", "nft"] {
        Command::new(program).arg("-V").output().map_err(|error| format!("needs {program}: {error}"))?;
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| format!("needs root, for namespaces of its own: {errno}"))?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("a /run of its own");
    run("ip", "link set lo up");
    Ok(())
}

/// Runs one of the programs that administrators use, with its words separated by spaces.
pub fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).output().expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl PrivateHost {
    /// `wrenn-net` with these words separated by spaces, on this root.
    pub fn net(&self, words: &str) -> Output {
        program(&self.roots, words).run()
    }

    /// Creates a slot for `id`: the named one, or the lowest free one. Gives the whole document.
    pub fn create(&self, id: &str, slot: Option<u16>) -> Value {
        let slot = slot.map(|slot| format!(" net.slot:={slot}")).unwrap_or_default();
        self.net(&format!("create id={id}{slot}")).success().reply()
    }

    /// The slots that `list` tells.
    pub fn slots(&self) -> Vec<u64> {
        let listed = self.net("list").success().reply();
        let slots = listed["slots"].as_array().expect("slots");
        slots.iter().map(|slot| slot["slot"].as_u64().expect("slot")).collect()
    }

    /// Somebody outside, reached by an uplink as a host's own: a socket there, and the address it is bound to.
    pub fn outside(&self) -> UdpSocket {
        run("ip", "netns add outside");
        run("ip", "link add uplink0 type veth peer name eth0 netns outside");
        run("ip", &format!("addr add {UPLINK}/30 dev uplink0"));
        run("ip", "link set uplink0 up");
        run("ip", "route add default dev uplink0");
        run("ip", &format!("-n outside addr add {OUTSIDE}/30 dev eth0"));
        run("ip", "-n outside link set eth0 up");
        let file = fs::File::open("/run/netns/outside").expect("the namespace outside");
        netns::on_own_thread(|| {
            netns::enter(&file).expect("enter the namespace outside");
            socket(OUTSIDE)
        })
    }
}

/// `wrenn-net` with these words separated by spaces.
pub fn program(roots: &Roots, words: &str) -> Program {
    roots.program("wrenn-net").args(words.split(' '))
}

/// A socket of the calling thread's namespace, which does not wait for ever.
pub fn socket(address: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap_or_else(|error| panic!("bind {address}: {error}"));
    socket.set_read_timeout(Some(LIMIT)).expect("a time limit");
    socket
}

/// What a private host holds of slots: interfaces, namespaces, mounts, rules, routes. Asked of others than wrenn-net.
pub fn traces() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let listed = |program: &str, words: &str| -> Vec<String> {
        run(program, words).lines().map(|line| format!("{program} {words}: {}", line.trim())).collect()
    };
    found.extend(listed("ip", "-o -br link"));
    found.extend(listed("ip", "-o -4 route"));
    found.extend(listed("nft", "list ruleset"));
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    found.extend(names.map(|entry| format!("file {}", entry.path().display())));
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("mounts");
    found.extend(
        mounts.lines().filter(|line| line.contains("/run/netns/")).map(|line| format!("mount {line}")),
    );
    found
}
