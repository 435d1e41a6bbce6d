//! The host's side of the guest agent: wait for it, initialise it, run commands, copy files (docs/wrenn-guest.md).
#![forbid(unsafe_code)]

mod agent;
pub mod cp;
mod error;
pub mod exec;
mod identity;
mod init;
mod preload;
mod ready;
mod stream;
mod vm;

pub use agent::Agent;
pub use error::Error;
use wire::{Field, LockOf, Tool, Type, Verb};

/// The port the agent listens on inside the guest.
pub const PORT: u16 = 49983;

const URL: Field =
    Field::may("guest.url", Type::String, "where the agent answers (default http://<net.host_ip>:49983)")
        .flag("url");
const TOKEN: Field = Field::may("guest.token", Type::String, "access token, once /init has set one");
const VM: Field = Field::may("vm", Type::Object, "the VMM's process: when it ends, so does the waiting");
const USER: Field =
    Field::may("user", Type::String, "whom to act as in the guest (default: spec.user, then root)")
        .flag("user");

/// `wrenn-guest` as a table.
pub static TOOL: Tool = Tool {
    name: "wrenn-guest",
    about: "the host's side of the guest agent",
    section: "guest",
    short: "guest",
    verbs: &[
        Verb {
            fields: &[
                URL,
                Field::may("net.host_ip", Type::String, "the guest's address on this host"),
                Field::may(
                    "timeout_s",
                    Type::Number,
                    "how long to wait, seconds (default: spec.ready_timeout_s)",
                ),
                Field::may(
                    "spec.ready_timeout_s",
                    Type::Number,
                    "the same, kept with the sandbox (default 30, and 1 more for each 32 MiB of spec.memory_mib)",
                ),
                Field::may("spec.memory_mib", Type::Integer, "guest memory, MiB"),
                VM,
            ],
            reply: &[
                Field::need("guest.url", Type::String, "where the agent answers"),
                Field::may("guest.version", Type::String, "the agent's version"),
            ],
            example: "wrenn-envd & wrenn-guest ready guest.url=http://127.0.0.1:49983; kill $!",
            ..Verb::new("ready", "wait until the agent answers", ready::run)
        },
        Verb {
            fields: &[
                URL,
                TOKEN,
                Field::may(
                    "id",
                    Type::Id,
                    "becomes the guest's hostname, and WRENN_SANDBOX_ID of every command",
                ),
                Field::may("spec.env", Type::Environment, "environment of every command"),
                Field::may("spec.user", Type::String, "user of commands that name none (default root)"),
                Field::may("spec.workdir", Type::String, "directory of commands that name none"),
                Field::may("spec.template", Type::String, "told to the guest"),
                Field::may(
                    "guest.machine_id",
                    Type::String,
                    "the guest's machine id, 32 hexadecimal digits (default: a fresh one)",
                ),
                Field::may(
                    "confirm",
                    Type::Bool,
                    "fail unless the agent confirms host name, machine id, clock and reseeding: for a guest woken from another's snapshot (default false)",
                )
                .flag("confirm"),
            ],
            reply: &[
                Field::may("guest.machine_id", Type::String, "the guest's machine id"),
                Field::may(
                    "guest.initialised_at",
                    Type::String,
                    "RFC 3339; the guest's clock was set to it",
                ),
            ],
            example: "wrenn-envd & wrenn-guest ready guest.url=http://127.0.0.1:49983 | wrenn-guest init - spec.env.GREETING=hello; kill $!",
            ..Verb::new(
                "init",
                "tell the agent environment, user, time and identity, after boot and after every resume",
                init::run,
            )
        },
        Verb {
            fields: &[
                URL,
                TOKEN,
                Field::may("wait", Type::Bool, "wait until it is done (default false)").flag("wait-done"),
                Field::may("timeout_s", Type::Number, "how long to wait for it, seconds (default 300)"),
            ],
            reply: &[Field::need(
                "guest.preload",
                Type::Object,
                "state: running, done or failed; bytes touched",
            )],
            example: "wrenn-envd & wrenn-guest ready guest.url=http://127.0.0.1:49983 | wrenn-guest preload - wait:=true; kill $!",
            ..Verb::new("preload", "have the guest touch all of its memory", preload::run)
        },
        Verb {
            fields: &[
                URL,
                TOKEN,
                Field::need(
                    "cmd",
                    Type::Strings,
                    "the command and its arguments; one string goes to /bin/sh -c",
                ),
                Field::may("env", Type::Environment, "more environment").flag("env"),
                Field::may("cwd", Type::String, "working directory (default: the user's)").flag("cwd"),
                USER,
                Field::may("stdin", Type::String, "what the command reads; without it, nothing"),
                Field::may(
                    "timeout_s",
                    Type::Number,
                    "after this many seconds the command is killed (default: never)",
                )
                .flag("timeout"),
                Field::may("json", Type::Bool, "print events as they come instead of one reply").flag("json"),
                VM,
            ],
            reply: &[Field::need(
                "exec",
                Type::Object,
                "pid, exit_code, status, stdout and stderr (text; what is not UTF-8 is replaced)",
            )],
            example: "wrenn-envd & wrenn-guest ready guest.url=http://127.0.0.1:49983 | wrenn-guest exec - -- uname -r; kill $!",
            rest: Some("cmd"),
            lock: LockOf::None,
            ..Verb::new("exec", "run a command in the guest", exec::run)
        },
        Verb {
            fields: &[
                URL,
                TOKEN,
                Field::need("from", Type::String, "a file; guest:/path names one in the guest"),
                Field::need("to", Type::String, "where to; exactly one of the two is in the guest"),
                USER,
                VM,
            ],
            reply: &[Field::need("copied_bytes", Type::Integer, "the file's size")],
            example: "wrenn-envd & wrenn-guest ready guest.url=http://127.0.0.1:49983 | wrenn-guest cp - from=/etc/hostname to=guest:/tmp/hostname; kill $!",
            operands: &["from", "to"],
            lock: LockOf::None,
            ..Verb::new("cp", "copy a file into the guest or out of it", cp::run)
        },
    ],
};
