//! `wrenn` as a table of verbs.

use wire::{Field, Input, LockOf, Tool, Type, Verb};

use crate::watch::{self, verbs};
use crate::{
    copy, create, doctor, exec, gc, list, listing, pause, reconcile, resume, rm, serve, shutdown, snapshot,
    template, top,
};

const ID: Field = Field::need("id", Type::Id, "the sandbox");
const DOCUMENT: &[Field] = &[
    Field::need("id", Type::Id, "the sandbox"),
    Field::need(
        "state",
        Type::String,
        "creating, running, pausing, paused, resuming, snapshotting, destroying, failed, stopped or removed",
    ),
    Field::may(
        "op",
        Type::Object,
        "the operation at work on it: verb, step, pid, start_time, boot_id, at (docs/wrenn.md)",
    ),
    Field::may("failure", Type::Object, "of a failed one: reason, at, log (its VMM's last lines)"),
    Field::may("spec", Type::Object, "what it was asked to be"),
    Field::may("cow", Type::Object, "its disk (docs/wrenn-cow.md)"),
    Field::may("net", Type::Object, "its network slot (docs/wrenn-net.md)"),
    Field::may("uffd", Type::Object, "its page server (docs/wrenn-uffd.md)"),
    Field::may("snapshot", Type::Object, "its last pause, or what it was woken from (docs/wrenn-snap.md)"),
    Field::may("vm", Type::Object, "its VMM (docs/wrenn-launch.md)"),
    Field::may("guest", Type::Object, "its agent (docs/wrenn-guest.md)"),
    Field::may("timings_ms", Type::Object, "what each step took, milliseconds"),
];

/// One sandbox, named as the first word.
const fn one(
    name: &'static str,
    about: &'static str,
    run: fn(&mut wire::Call) -> Result<wire::Reply, wire::Error>,
) -> Verb {
    Verb {
        fields: &[ID],
        reply: DOCUMENT,
        operands: &["id"],
        lock: LockOf::Operation,
        ..Verb::new(name, about, run)
    }
}

/// `wrenn`.
pub static TOOL: Tool = Tool {
    name: "wrenn",
    about: "sandboxes by name: create, run commands, pause, resume, copy",
    section: "wrenn",
    short: "wrenn",
    verbs: &[
        Verb {
            fields: &[
                Field::may("id", Type::Id, "the new sandbox's id (default: sb- and eight digits)").flag("id"),
                Field::may("spec.template", Type::String, "[team/]name below images/ (default minimal)")
                    .flag("template"),
                Field::may(
                    "spec.vcpus",
                    Type::Integer,
                    "virtual CPUs (default 1; a snapshot template's are fixed)",
                )
                .flag("vcpus"),
                Field::may(
                    "spec.memory_mib",
                    Type::Integer,
                    "memory, MiB (default 512; a snapshot template's is fixed)",
                )
                .flag("memory"),
                Field::may(
                    "spec.disk_mib",
                    Type::Integer,
                    "room for changes to the disk, MiB (default 2048)",
                )
                .flag("disk"),
                Field::may(
                    "spec.timeout_s",
                    Type::Integer,
                    "idle seconds after which `wrenn watch` pauses it (default 0: never)",
                )
                .flag("timeout"),
                Field::may(
                    "spec.ready_timeout_s",
                    Type::Number,
                    "how long its agent may take to answer, now and after every resume, seconds (default 30, and 1 more for each 32 MiB)",
                )
                .flag("ready-timeout"),
                Field::may(
                    "spec.on_expiry",
                    Type::OneOf(watch::ON_EXPIRY),
                    "what `wrenn watch` does with it then (default pause)",
                )
                .flag("on-expiry"),
                Field::may(
                    "spec.vmm",
                    Type::String,
                    "firecracker, cloud-hypervisor or wrenn-vmm (default: the first that is there; a template's is fixed)",
                )
                .flag("vmm"),
                Field::may("spec.user", Type::String, "whom commands run as (default root)").flag("user"),
                Field::may("spec.env", Type::Environment, "environment of every command").flag("env"),
                Field::may("metadata", Type::Environment, "anything of the caller's").flag("metadata"),
                Field::may("kernel", Type::Path, "vmlinux (default <root>/kernels/vmlinux)").flag("kernel"),
                Field::may(
                    "initrd",
                    Type::Path,
                    "initial ramdisk (default <root>/kernels/initrd, if it is there)",
                )
                .flag("initrd"),
                Field::may("cmdline", Type::String, "kernel command line (default: wrenn-launch's)")
                    .flag("cmdline"),
            ],
            reply: DOCUMENT,
            example: "wrenn create --template minimal --memory 256",
            input: Input::None,
            // The id may be made up on the way; the lock is taken then.
            lock: LockOf::None,
            ..Verb::new(
                "create",
                "boot a sandbox from an image, or wake one from a snapshot template",
                create::run,
            )
        },
        Verb {
            fields: &[
                ID,
                Field::need("cmd", Type::Strings, "the command and its arguments"),
                Field::may("env", Type::Environment, "more environment").flag("env"),
                Field::may("cwd", Type::String, "working directory (default: the user's)").flag("cwd"),
                Field::may("user", Type::String, "whom to run it as (default: spec.user)").flag("user"),
                Field::may(
                    "timeout_s",
                    Type::Number,
                    "after this many seconds the command is killed (default: never)",
                )
                .flag("timeout"),
                Field::may("stdin", Type::Bool, "pass on this program's stdin (default false)").flag("stdin"),
                Field::may("input", Type::String, "what it reads on stdin instead, text"),
                Field::may("input_base64", Type::String, "the same, any bytes"),
                Field::may("json", Type::Bool, "print events, one a line").flag("json"),
            ],
            example: "id=$(wrenn create | jq -r .id) && wrenn exec $id -- uname -a",
            operands: &["id"],
            rest: Some("cmd"),
            lock: LockOf::None,
            ..Verb::new("exec", "run a command; ends with its exit status", exec::run)
        },
        Verb {
            example: "wrenn create --id demo && wrenn pause demo",
            ..one("pause", "freeze a sandbox to disk", pause::run)
        },
        Verb {
            fields: &[ID, Field::may("timeout_s", Type::Integer, "a new spec.timeout_s").flag("timeout")],
            example: "wrenn create --id demo && wrenn pause demo && wrenn resume demo",
            // A pause that holds it is called back first.
            lock: LockOf::None,
            ..one(
                "resume",
                "wake a paused sandbox, or one whose VM died, from its last pause; call a pause back",
                resume::run,
            )
        },
        Verb {
            fields: &[
                ID,
                Field::need("name", Type::String, "[team/]name of the new template; never an existing one"),
                Field::may("stay_paused", Type::Bool, "leave a running sandbox paused (default false)")
                    .flag("stay-paused"),
            ],
            reply: &[
                Field::need("id", Type::Id, "the sandbox"),
                Field::need("template", Type::String, "the new template's name"),
                Field::need("template_bytes", Type::Integer, "what it takes on disk, bytes"),
                Field::need("template_dir", Type::Path, "where it is"),
            ],
            operands: &["id", "name"],
            example: "wrenn create --id demo && wrenn snapshot demo team/warm && wrenn create --template team/warm",
            ..one("snapshot", "make a template of a sandbox; one that runs goes on running", snapshot::run)
        },
        Verb {
            fields: &[
                Field::need("action", Type::OneOf(&["ls", "get", "rm"]), "what to do"),
                Field::may("name", Type::String, "[team/]name, for get and rm"),
            ],
            reply: &[
                Field::may("templates", Type::Array, "ls: all templates"),
                Field::may("template", Type::Object, "get: name, dir, kind (image or snapshot), bytes, meta"),
                Field::may("removed", Type::String, "rm: its name"),
            ],
            operands: &["action", "name"],
            example: "wrenn template ls",
            lock: LockOf::None,
            ..Verb::new("template", "list, describe or remove templates", template::run)
        },
        Verb {
            example: "wrenn create --id demo && wrenn rm demo",
            ..one("rm", "remove everything of a sandbox, its pauses too", rm::run)
        },
        Verb {
            fields: &[
                Field::may("state", Type::OneOf(list::STATES), "only those in this state").flag("state"),
                Field::may("template", Type::String, "only those made from this template").flag("template"),
                Field::may("metadata", Type::Environment, "only those with this metadata").flag("metadata"),
                Field::may("json", Type::Bool, "no table on a terminal").flag("json"),
            ],
            reply: &[Field::need("sandboxes", Type::Array, "their documents")],
            example: "wrenn ls --state running",
            input: Input::None,
            lock: LockOf::None,
            show: Some(listing::show),
            ..Verb::new("ls", "all sandboxes", list::ls)
        },
        Verb {
            example: "wrenn create --id demo && wrenn get demo --pretty",
            lock: LockOf::None,
            ..one("get", "a sandbox's document", list::get)
        },
        Verb {
            example: "wrenn create --id demo && wrenn ping demo",
            ..one("ping", "tell that a sandbox is still wanted", list::ping)
        },
        Verb {
            fields: &[
                Field::need("from", Type::String, "a file; ID:/path names one in a sandbox"),
                Field::need("to", Type::String, "where to; exactly one of the two is in a sandbox"),
                Field::may("user", Type::String, "whom to act as in the guest (default: spec.user)")
                    .flag("user"),
            ],
            reply: &[Field::need("copied_bytes", Type::Integer, "the file's size")],
            operands: &["from", "to"],
            example: "wrenn create --id demo && wrenn cp /etc/hostname demo:/tmp/hostname",
            lock: LockOf::None,
            ..Verb::new("cp", "copy a file into a sandbox or out of it", copy::run)
        },
        Verb {
            fields: &[Field::may("id", Type::Id, "this sandbox alone (default: all)")],
            reply: &[Field::need("report", Type::Array, "what was done, to which sandbox, and why")],
            operands: &["id"],
            example: "wrenn reconcile",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("reconcile", "finish or undo what killed operations left of sandboxes", reconcile::run)
        },
        Verb {
            reply: &[Field::need("report", Type::Array, "what was done, to what, and why")],
            example: "wrenn gc",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("gc", "finish or undo what a crash left, remove what belongs to no sandbox", gc::run)
        },
        Verb {
            fields: &[Field::may("socket", Type::Path, "where to listen (default <run>/agent.sock)").flag("socket")],
            example: "wrenn serve & sleep 1; curl --unix-socket /run/wrenn/agent.sock http://wrenn/v1/sandboxes",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("serve", "answer the verbs as HTTP and JSON on a Unix socket", serve::run)
        },
        Verb {
            fields: &[
                Field::may("destroy", Type::Bool, "destroy what runs instead of pausing it").flag("destroy")
            ],
            reply: &[
                Field::need("sandboxes", Type::Array, "id and new state of each"),
                Field::need("report", Type::Array, "what gc did then"),
            ],
            example: "wrenn shutdown",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("shutdown", "pause all that runs and leave a clean host", shutdown::run)
        },
        verbs::WATCH,
        top::VERB,
        Verb {
            reply: &[
                Field::need("checks", Type::Array, "name, ok, message, and a remedy where it is not ok"),
                Field::need("ok", Type::Bool, "whether every check passed"),
            ],
            example: "wrenn doctor --pretty",
            input: Input::None,
            lock: LockOf::None,
            ..Verb::new("doctor", "what this host can and cannot do", doctor::run)
        },
    ],
};
