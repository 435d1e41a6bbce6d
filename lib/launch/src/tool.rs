//! `wrenn-launch` as a table.

use wire::{Field, LockOf, Tool, Type, Verb};

use crate::{balloon, boot, pause, restore, resume, snapshot, status, stop, wait};

const ID: Field = Field::need("id", Type::Id, "the sandbox");
const VMM_PATH: Field = Field::may(
    "vmm_path",
    Type::Path,
    "the VMM's program (default: firecracker by WRENN_FIRECRACKER, cloud-hypervisor by WRENN_CLOUD_HYPERVISOR, each else in PATH; wrenn-vmm beside this program or in PATH)",
);
const NAMES: Type = Type::OneOf(&["firecracker", "cloud-hypervisor", "wrenn-vmm"]);
const VMM: Field = Field::may("spec.vmm", NAMES, "which VMM (default: the first of them that is there)");
const VMM_OF: Field =
    Field::may("spec.vmm", NAMES, "which VMM; must be the snapshot's (default: the snapshot's)");
const DEVICE: Field = Field::may("cow.device", Type::Path, "the root disk (default: rootfs)");
const ROOTFS: Field =
    Field::may("rootfs", Type::Path, "without cow.device: an image, used directly and written to");
const NETNS: Field =
    Field::may("net.netns", Type::String, "network namespace to start in, a name under /run/netns");

const PID: Field = Field::need("vm.pid", Type::Integer, "the VMM's process");
const START: Field = Field::need("vm.start_time", Type::Integer, "its start, clock ticks since boot");
const BOOT_ID: Field = Field::need("vm.boot_id", Type::String, "the boot it belongs to");
const API: Field = Field::need("vm.api", Type::Path, "its API socket");

const OF_VM: &[Field] = &[ID, PID, START, BOOT_ID, API];
const STATE: Field = Field::need("vm.state", Type::OneOf(&["running", "paused", "gone"]), "what the VM does");

const STARTED: &[Field] = &[
    Field::need("vm.vmm", NAMES, "which VMM it is"),
    Field::need("vm.version", Type::String, "its version"),
    PID,
    START,
    BOOT_ID,
    API,
    Field::need("vm.workdir", Type::Path, "where it sees its root disk, in its own mount namespace"),
    Field::need("vm.log", Type::Path, "its log, and its guest's console (Cloud Hypervisor: not the latter)"),
    STATE,
    Field::may("vm.base", Type::Path, "the snapshot that its memory changes from"),
];

/// `wrenn-launch` as a table.
pub static TOOL: Tool = Tool {
    name: "wrenn-launch",
    about: "VMM processes: boot, freeze, thaw, end",
    section: "vm",
    short: "launch",
    verbs: &[
        Verb {
            fields: &[
                ID,
                VMM,
                VMM_PATH,
                Field::may("spec.vcpus", Type::Integer, "1 to 32 (default 1)"),
                Field::may("spec.memory_mib", Type::Integer, "guest memory, MiB (default 512)"),
                Field::need("kernel", Type::Path, "an ELF vmlinux, or a bzImage (not for Firecracker)"),
                Field::may("initrd", Type::Path, "an initramfs (default none)"),
                Field::may(
                    "cmdline",
                    Type::String,
                    "the kernel's command line (default: docs/wrenn-launch.md)",
                ),
                DEVICE,
                ROOTFS,
                NETNS,
                Field::may("net.tap", Type::String, "the tap in it; needed with section net"),
                Field::may("net.guest_mac", Type::String, "the guest's MAC; needed with section net"),
                Field::may("net.guest_ip", Type::String, "the guest's address; needed with section net"),
                Field::may("net.tap_ip", Type::String, "the guest's gateway; needed with section net"),
            ],
            reply: STARTED,
            example: "wrenn-launch boot id=sb-1 kernel=target/image/kernel initrd=target/image/initrd rootfs=disk.ext4",
            ..Verb::new("boot", "start a VMM and boot a guest", boot::run)
        },
        Verb {
            fields: &[
                ID,
                VMM_OF,
                VMM_PATH,
                Field::need("snapshot.dir", Type::Path, "the snapshot"),
                Field::may(
                    "lazy",
                    Type::Bool,
                    "false: memory from a plain file even with section uffd, by Cloud Hypervisor all of it at once (default true)",
                ),
                Field::may(
                    "uffd.socket",
                    Type::Path,
                    "the page server's socket, with uffd.pid, start_time, boot_id; not for Cloud Hypervisor",
                ),
                Field::may(
                    "snapshot.raw",
                    Type::Path,
                    "without section uffd: a file with all of the memory (default: memfile, memory-ranges in the snapshot)",
                ),
                DEVICE,
                ROOTFS,
                NETNS,
            ],
            reply: STARTED,
            example: "wrenn-launch restore id=sb-1 snapshot.dir=gen-0001 snapshot.raw=memory rootfs=disk.ext4",
            ..Verb::new("restore", "start a VMM from a snapshot and leave it paused", restore::run)
        },
        Verb {
            fields: OF_VM,
            reply: &[STATE],
            example: "wrenn-launch pause <sandbox.json",
            ..Verb::new("pause", "stop the vCPUs; again is success", pause::run)
        },
        Verb {
            fields: OF_VM,
            reply: &[STATE],
            example: "wrenn-launch resume <sandbox.json",
            ..Verb::new("resume", "let the vCPUs run; again is success", resume::run)
        },
        Verb {
            fields: &[
                ID,
                PID,
                START,
                BOOT_ID,
                API,
                Field::need("snapshot.dir", Type::Path, "where to; made if its parent exists"),
                Field::need(
                    "snapshot.kind",
                    Type::OneOf(&["full", "diff"]),
                    "all memory, or what changed since vm.base (not Cloud Hypervisor)",
                ),
                Field::may("snapshot.parent", Type::Path, "for a diff: must be vm.base"),
                Field::may("cow.device", Type::Path, "the root disk, which is synced (default: rootfs)"),
            ],
            reply: &[
                Field::need(
                    "snapshot.raw",
                    Type::Path,
                    "the memory as written; holes are zeros in a full one, what is unchanged in a diff",
                ),
                Field::need("vm.base", Type::Path, "the snapshot that its memory changes from"),
            ],
            example: "wrenn-launch snapshot - snapshot.dir=gen-0001 snapshot.kind=full <paused.json",
            ..Verb::new("snapshot", "write a paused VM's state and memory", snapshot::run)
        },
        Verb {
            fields: &[
                ID,
                PID,
                START,
                BOOT_ID,
                API,
                Field::need(
                    "balloon.amount_mib",
                    Type::Integer,
                    "memory the guest is to give back, MiB; 0 deflates",
                )
                .flag("mib"),
            ],
            example: "wrenn-launch balloon - --mib 64 <sandbox.json",
            ..Verb::new("balloon", "set how much memory the guest gives back", balloon::run)
        },
        Verb {
            fields: OF_VM,
            reply: &[
                STATE,
                Field::may(
                    "vm.complete",
                    Type::Bool,
                    "Cloud Hypervisor: whether all memory of the snapshot it came from has been read",
                ),
                Field::may("vm.cpu_ms", Type::Integer, "CPU time used, milliseconds"),
                Field::may("vm.rss_bytes", Type::Integer, "resident memory, bytes"),
                Field::may("vm.balloon.target_mib", Type::Integer, "what the guest was asked to give back"),
                Field::may("vm.balloon.actual_mib", Type::Integer, "what it has given back"),
            ],
            example: "wrenn-launch status <sandbox.json",
            ..Verb::new("status", "say what the VM does and costs", status::run)
        },
        Verb {
            fields: &[
                ID,
                Field::may("vm", Type::Object, "its process (default: what carries the sandbox's mark)"),
            ],
            example: "wrenn-launch stop <sandbox.json",
            ..Verb::new("stop", "end the VMM; ended already is success", stop::run)
        },
        Verb {
            fields: OF_VM,
            example: "wrenn-launch wait <sandbox.json",
            lock: LockOf::None,
            ..Verb::new("wait", "block until the VMM has ended", wait::run)
        },
    ],
};
