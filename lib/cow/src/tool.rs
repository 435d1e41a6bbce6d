//! The table of verbs.

use wire::{Field, Input, LockOf, Tool, Type, Verb};

use crate::{create, delete, flatten, gc, list, remove, restore, status};

const ID: Field = Field::need("id", Type::Id, "the sandbox; names the device");
const KIND: Field = Field::may(
    "kind",
    Type::OneOf(&["snapshot", "clone"]),
    "how the disk keeps its changes (default snapshot)",
);
const FILE: Field = Field::need("file", Type::Path, "the disk's file: changes, or the whole copy");
const IMAGE: Field = Field::may("image", Type::Path, "the image the disk is made over (default rootfs)");
const ORIGIN_BYTES: Field =
    Field::may("origin_bytes", Type::Integer, "bytes the image has; another size is refused");

/// The section of a disk that is up.
const UP: &[Field] = &[
    Field::need("cow.kind", Type::OneOf(&["snapshot", "clone"]), "how the disk keeps its changes"),
    Field::need("cow.image", Type::Path, "the image"),
    Field::need("cow.origin_bytes", Type::Integer, "bytes of the disk, as many as the image has"),
    Field::need("cow.file", Type::Path, "the CoW file, or the copy"),
    Field::need("cow.file_bytes", Type::Integer, "its size in bytes, holes included"),
    Field::need("cow.device", Type::Path, "what the VMM opens: the mapped device, or the copy"),
    Field::may("cow.name", Type::String, "the mapped device's name"),
    Field::may("cow.origin", Type::Path, "the image's loop device, shared with other disks"),
    Field::may("cow.loop", Type::Path, "the CoW file's loop device"),
    Field::may("cow.frozen", Type::Path, "the paused file that it was restored from"),
];

/// The section of a disk that is not.
const DOWN: &[Field] = &[
    Field::may("cow.kind", Type::OneOf(&["snapshot", "clone"]), "how the disk keeps its changes"),
    Field::may("cow.image", Type::Path, "the image"),
    Field::may("cow.origin_bytes", Type::Integer, "bytes of the disk"),
    Field::may("cow.file", Type::Path, "the disk's file; <snapshot.dir>/rootfs.cow after a pause"),
    Field::may("cow.file_bytes", Type::Integer, "its size in bytes, holes included"),
];

/// `wrenn-cow`.
pub static TOOL: Tool = Tool {
    name: "wrenn-cow",
    about: "root disks: a private writable layer over a shared image",
    section: "cow",
    short: "cow",
    verbs: &[
        Verb {
            fields: &[
                ID,
                Field::need(
                    "rootfs",
                    Type::Path,
                    "the image: a file of a multiple of 512 bytes, never written",
                ),
                Field::may(
                    "kind",
                    Type::OneOf(&["auto", "snapshot", "clone"]),
                    "auto is snapshot where there is device-mapper, else a private copy (default auto)",
                ),
                Field::may(
                    "spec.disk_mib",
                    Type::Integer,
                    "MiB that may be changed, if more than the image has (default the image's size)",
                ),
                Field::may(
                    "file",
                    Type::Path,
                    "the file to make (default <root>/sandboxes/<id>/live/rootfs.cow)",
                ),
            ],
            reply: UP,
            example: "wrenn-cow create id=sb-1 rootfs=/var/lib/wrenn/images/minimal/rootfs.ext4",
            ..Verb::new("create", "makes the disk and brings it up", create::run)
        },
        Verb {
            fields: &[ID, FILE, IMAGE, KIND, ORIGIN_BYTES],
            reply: UP,
            example: "wrenn-cow restore id=sb-1 file=/var/lib/wrenn/sandboxes/sb-1/gen-0001/rootfs.cow",
            ..Verb::new("restore", "makes the live disk of a paused one, which stays as it is", restore::run)
        },
        Verb {
            fields: &[
                ID,
                Field::may("file", Type::Path, "the disk's file"),
                IMAGE,
                KIND,
                ORIGIN_BYTES,
                Field::may(
                    "snapshot.dir",
                    Type::Path,
                    "the pause that the file goes to, as rootfs.cow with rootfs.meta (default: it stays where it is)",
                ),
            ],
            reply: DOWN,
            example: "wrenn-cow remove id=sb-1 cow.file=/var/lib/wrenn/sandboxes/sb-1/live/rootfs.cow cow.image=/var/lib/wrenn/images/minimal/rootfs.ext4",
            ..Verb::new("remove", "takes the disk down and keeps its file", remove::run)
        },
        Verb {
            fields: &[
                ID,
                Field::may("file", Type::Path, "the disk's file"),
                Field::may("frozen", Type::Path, "the paused file it was restored from"),
                KIND,
            ],
            example: "wrenn-cow delete id=sb-1",
            ..Verb::new(
                "delete",
                "takes the disk down and removes its files; a paused one beside its rootfs.meta stays",
                delete::run,
            )
        },
        Verb {
            fields: &[
                Field::may("id", Type::Id, "the sandbox, if the disk is up: it is suspended for a moment"),
                FILE,
                Field::need("out", Type::Path, "the image to make; never over an existing file"),
                IMAGE,
                KIND,
                ORIGIN_BYTES,
            ],
            example: "wrenn-cow flatten file=/var/lib/wrenn/sandboxes/sb-1/gen-0001/rootfs.cow image=/var/lib/wrenn/images/minimal/rootfs.ext4 out=/tmp/rootfs.ext4",
            ..Verb::new("flatten", "writes image and changes as one new sparse image", flatten::run)
        },
        Verb {
            fields: &[
                ID,
                Field::may("file", Type::Path, "the disk's file, which a copy's fill level is taken from"),
                KIND,
            ],
            reply: &[Field::need(
                "cow.usage",
                Type::Object,
                "state (ok, invalid, overflow, merge_failed), used_sectors, total_sectors, metadata_sectors, percent",
            )],
            example: "wrenn-cow status id=sb-1",
            ..Verb::new("status", "how full the disk is", status::run)
        },
        Verb {
            reply: &[
                Field::need(
                    "disks",
                    Type::Array,
                    "id, kind, name, device, image, origin, file, loop of each",
                ),
                Field::need("loops", Type::Array, "loop, file of each, and id or shared: true"),
            ],
            input: Input::None,
            lock: LockOf::None,
            example: "wrenn-cow list --pretty",
            ..Verb::new("list", "the disks and loop devices of this root", list::run)
        },
        Verb {
            fields: &[
                Field::may(
                    "keep",
                    Type::Strings,
                    "ids of the sandboxes whose disks are left alone (default none)",
                ),
                Field::may(
                    "min_age_s",
                    Type::Number,
                    "seconds; what is younger may still be in the making and is left alone (default 60)",
                ),
            ],
            reply: &[
                Field::need("removed", Type::Array, "id and device, loop or file of each"),
                Field::need(
                    "left",
                    Type::Array,
                    "id and why of each sandbox that was left alone, besides keep",
                ),
            ],
            input: Input::None,
            lock: LockOf::None,
            example: "wrenn-cow gc 'keep:=[\"sb-1\"]'",
            ..Verb::new(
                "gc",
                "removes devices, loop devices and live files of this root that are not to be kept",
                gc::run,
            )
        },
    ],
};
