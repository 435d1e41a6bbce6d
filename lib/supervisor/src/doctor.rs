//! `wrenn doctor`: what this host can and cannot do, and the remedy.

use std::fs::{self, OpenOptions};
use std::path::Path;

use wire::{Call, Document, Error, Host, Reply, Value, json};

/// One check: what was looked at, what was found, what helps.
struct Check {
    name: &'static str,
    finding: Result<String, String>,
    remedy: &'static str,
}

pub fn run(call: &mut Call) -> Result<Reply, Error> {
    let checks: Vec<Check> = checks(call.host);
    let ok = checks.iter().all(|check| check.finding.is_ok());
    let shown: Vec<Value> = checks.iter().map(Check::show).collect();
    call.document.set("checks", shown);
    call.document.set("ok", ok);
    Ok(Reply::Document)
}

impl Check {
    fn show(&self) -> Value {
        match &self.finding {
            Ok(message) => json!({"name": self.name, "ok": true, "message": message}),
            Err(message) => {
                json!({"name": self.name, "ok": false, "message": message, "remedy": self.remedy})
            }
        }
    }
}

fn checks(host: &Host) -> Vec<Check> {
    let check = |name, finding, remedy| Check { name, finding, remedy };
    vec![
        check("root", root(), "run as root: namespaces, taps and device-mapper need it"),
        check(
            "kvm",
            device("/dev/kvm"),
            "enable virtualisation, `modprobe kvm_intel` or `kvm_amd`; without it, use scripts/lab",
        ),
        check(
            "device-mapper",
            device("/dev/mapper/control"),
            "`modprobe dm-snapshot`; without it disks are private copies (kind: clone)",
        ),
        check("loop", device("/dev/loop-control"), "`modprobe loop`"),
        check(
            "userfaultfd",
            device("/dev/userfaultfd"),
            "a kernel with CONFIG_USERFAULTFD; before 6.1 the system call does as root",
        ),
        check("tun", device("/dev/net/tun"), "`modprobe tun`"),
        check("netns", exists("/proc/self/ns/net"), "a kernel with CONFIG_NET_NS"),
        check("nftables", nftables(), "`modprobe nf_tables`"),
        check(
            "vmm",
            vmm(),
            "build wrenn-vmm beside this program, or name a VMM in WRENN_FIRECRACKER or WRENN_CLOUD_HYPERVISOR",
        ),
        check("page server", sibling("wrenn-uffd"), "install wrenn-uffd beside wrenn"),
        check("kernel", exists(host.root().join("kernels/vmlinux")), "docs/image.md says how to make one"),
        check("image", images(host), "docs/image.md says how to make one"),
        check(
            "reflink",
            reflink(host),
            "put WRENN_ROOT on XFS or btrfs; without it a resume copies the disk's changes",
        ),
    ]
}

fn root() -> Result<String, String> {
    let uid = nix::unistd::geteuid();
    if uid.is_root() { Ok("uid 0".into()) } else { Err(format!("uid {uid}")) }
}

fn device(path: &str) -> Result<String, String> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(format!("{path} opens")),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

fn exists(path: impl AsRef<Path>) -> Result<String, String> {
    let path = path.as_ref();
    if path.exists() {
        Ok(format!("{} is there", path.display()))
    } else {
        Err(format!("{} does not exist", path.display()))
    }
}

fn nftables() -> Result<String, String> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let made =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter);
    made.map(|_| "netfilter's netlink opens".into()).map_err(|errno| format!("netfilter's netlink: {errno}"))
}

/// What a sandbox gets that asks for none.
fn vmm() -> Result<String, String> {
    match launch::choose(&Document::new()) {
        Ok(chosen) => Ok(format!("{}: {}", chosen.name(), chosen.program.display())),
        Err(error) => Err(error.message),
    }
}

fn sibling(name: &str) -> Result<String, String> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = beside.into_iter().chain(std::env::split_paths(&path).map(|dir| dir.join(name)));
    match candidates.find(|path| path.is_file()) {
        Some(path) => Ok(path.display().to_string()),
        None => Err(format!("no {name} beside this program or in PATH")),
    }
}

fn images(host: &Host) -> Result<String, String> {
    match store::Templates::of(host).list() {
        Ok(all) if all.is_empty() => Err(format!("none in {}", host.root().join("images").display())),
        Ok(all) => Ok(all.iter().map(|each| each.name.as_str()).collect::<Vec<_>>().join(", ")),
        Err(error) => Err(error.to_string()),
    }
}

/// Clones a small file below the root, as a resume would clone a disk.
fn reflink(host: &Host) -> Result<String, String> {
    let root = host.root();
    let name = |suffix: &str| root.join(format!(".doctor-{}-{suffix}", std::process::id()));
    let (from, to) = (name("from"), name("to"));
    let tried = fs::write(&from, vec![1; 4096])
        .and_then(|()| Ok((fs::File::open(&from)?, fs::File::create(&to)?)))
        .and_then(|(from, to)| sys::sparse::clone_file(&from, &to));
    let _ = (fs::remove_file(&from), fs::remove_file(&to));
    match tried {
        Ok(_) => Ok(format!("{} clones files", root.display())),
        Err(error) => Err(format!("{}: {error}", root.display())),
    }
}
