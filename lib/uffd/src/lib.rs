//! The page server: answers a VMM's page faults from a memory image (docs/wrenn-uffd.md).
//!
//! Three processes play together: the verb that somebody calls, the server (a thread with an [`Engine`] for each VMM), and
//! between them the guardian, the server's parent, which starts another one if the server dies. `wrenn-uffd` is the program of
//! all three.
#![forbid(unsafe_code)]

mod ahead;
mod area;
mod bits;
mod channel;
mod check;
mod checking;
mod config;
mod control;
mod ending;
mod engine;
mod epochs;
mod error;
mod guardian;
pub mod handshake;
mod histogram;
mod mail;
mod note;
mod orders;
mod prefetch;
mod region;
mod replay;
pub mod report;
mod restart;
mod role;
mod seen;
mod serve;
mod served;
mod server;
mod service;
mod serving;
mod socket;
mod spin;
mod state;
mod stats;
mod stop;
mod timeline;
pub mod trace;
mod wait;
mod warm;
pub mod workingset;

pub use ending::died;
pub use engine::{Engine, Step};
pub use error::{Error, LostPage};
pub use prefetch::Prefetch;
pub use region::{Region, RegionFault};
pub use role::role;
pub use seen::Counts;
pub use serving::serving;
pub use stats::missing_bytes;
use wire::{Field, LockOf, Tool, Type, Verb};

const SOCKET: Field = Field::may(
    "socket",
    Type::Path,
    "where the VMM connects (default <run>/<id>/uffd.sock, else beside control)",
);
const CONTROL: Field =
    Field::may("control", Type::Path, "where stats and stop ask (default uffd.ctl beside the socket)");
const ID: Field = Field::may("id", Type::Id, "the sandbox; its sockets lie in <run>/<id>");
const UFFD: Field = Field::may("uffd", Type::Object, "pid, start_time, boot_id of the service that is meant");
const VM: Field = Field::may(
    "vm",
    Type::Object,
    "pid, start_time, boot_id of the one that is meant, where there are several",
);
const REMOVED: Field = Field::may(
    "removed",
    Type::Path,
    "file of the ranges the VMM discarded, {\"ranges\": [[offset, length], …]}; not about several",
);

/// `wrenn-uffd` as a table.
pub static TOOL: Tool = Tool {
    name: "wrenn-uffd",
    about: "the page server: answers a VMM's page faults from a snapshot",
    section: "uffd",
    short: "uffd",
    verbs: &[
        Verb {
            fields: &[
                ID,
                Field::may("source.dir", Type::Path, "snapshot directory (default snapshot.dir)"),
                Field::may("source.raw", Type::Path, "a raw memory file instead"),
                Field::may("snapshot.dir", Type::Path, "snapshot directory, in a sandbox's document"),
                SOCKET,
                CONTROL,
                Field::may(
                    "prefetch",
                    Type::OneOf(Prefetch::WORDS),
                    "load a recorded working set and then the rest, the recorded set alone, or nothing (default all)",
                ),
                Field::may(
                    "record",
                    Type::Bool,
                    "add the pages asked for first to the snapshot's working set; loading ahead waits meanwhile (default false)",
                ),
                Field::may(
                    "record_ms",
                    Type::Integer,
                    "how long to record, in milliseconds from the first fault, 1 to 60000 (default 3000)",
                ),
                Field::may(
                    "verify",
                    Type::Bool,
                    "compare what is stored with its checksums before the VMM gets it; what differs counts as lost (default false)",
                ),
                Field::may(
                    "trace",
                    Type::Path,
                    "write every fault, discard and piece loaded ahead into this file, for report; at most 1 048 576 of them (default: none)",
                ),
                Field::may(
                    "clients",
                    Type::Integer,
                    "how many VMMs to serve, side by side or one after another; 0: until stopped (default 1)",
                ),
                Field::may(
                    "detach",
                    Type::Bool,
                    "live on in the background and print the document (default false: print events)",
                ),
            ],
            reply: &[
                Field::may(
                    "uffd.pid",
                    Type::Integer,
                    "the service's pid, with start_time and boot_id: that of its guardian",
                ),
                Field::may("uffd.socket", Type::Path, "where the VMM connects"),
                Field::may("uffd.control", Type::Path, "where stats and stop ask"),
                Field::may("uffd.removed", Type::Path, "where stats writes the discarded ranges"),
            ],
            example: "wrenn-uffd serve source.raw=memfile.raw socket=/tmp/uffd.sock",
            lock: LockOf::None,
            ..Verb::new("serve", "listen, take the VMM's handshake, serve until the VMM is gone", serve::run)
        },
        Verb {
            fields: &[ID, CONTROL, SOCKET, UFFD, VM],
            reply: &[
                REMOVED,
                Field::need(
                    "stats",
                    Type::Object,
                    "state, faults, copied, zeroed, removed, prefetched, around (pages; …_bytes: bytes), missing_bytes, complete, spins, spin_hits, prefetch {of, bytes, done}, working_set {runs, bytes, loaded_bytes, late, missed, ms}, rereads, answers {image, zero, refill, exists, unmapped, poison}, latency_us {p50, p90, p99, max}, trace_records, server_pid, restarts; of several VMMs state, came, missing_bytes, complete, and the rest of each in vms",
                ),
            ],
            example: "wrenn-uffd stats control=/tmp/uffd.ctl",
            ..Verb::new("stats", "what a server has done, and the ranges the VMM discarded", stats::run)
        },
        Verb {
            fields: &[ID, CONTROL, SOCKET, UFFD],
            reply: &[
                Field::need("stats", Type::Object, "as of stats, told by the new server"),
                Field::need("restart_ms", Type::Number, "from the request to the new server's first answer"),
            ],
            example: "wrenn-uffd restart control=/tmp/uffd.ctl",
            ..Verb::new(
                "restart",
                "another server, of the program as installed now, goes on in a server's place",
                restart::run,
            )
        },
        Verb {
            fields: &[
                ID,
                CONTROL,
                SOCKET,
                UFFD,
                Field::may("force", Type::Bool, "stop a VMM that would hang, too (default false: conflict)"),
            ],
            example: "wrenn-uffd stop control=/tmp/uffd.ctl",
            ..Verb::new("stop", "end a server; one that is gone already is success", stop::run)
        },
        report::VERB,
        check::VERB,
    ],
};
