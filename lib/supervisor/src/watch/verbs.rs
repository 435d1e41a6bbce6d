//! `wrenn watch`, for the table of verbs.

use wire::{Field, Input, LockOf, Type, Verb};

/// `wrenn watch`.
pub const WATCH: Verb = Verb {
    fields: &[
        Field::may("interval", Type::Number, "seconds between samples, 0.1 to 86400 (default 10)")
            .flag("interval"),
        Field::may("metrics", Type::Path, "file for Prometheus, replaced with every round of samples")
            .flag("metrics"),
        Field::may("once", Type::Bool, "do what is due, take one round of samples and end").flag("once"),
        Field::may(
            "drain",
            Type::Bool,
            "only tell which sandboxes were paused on their own since the last call",
        )
        .flag("drain"),
    ],
    reply: &[
        Field::may("ids", Type::Strings, "drain: the sandboxes that were paused, each told once"),
        Field::may("sandboxes", Type::Array, "drain: the same with the time: {id, at}"),
    ],
    example: "wrenn watch --once",
    input: Input::None,
    lock: LockOf::None,
    ..Verb::new("watch", "pause what is idle, notice what dies, take samples: one event a line", super::run)
};
