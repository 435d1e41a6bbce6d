//! Where a snapshot's root disk has to be: `config.json` names the file, and a restore opens it there and nowhere else.
//!
//! Every VMM has a /tmp of its own, empty at its start, so that a place below it can be made anew for each of any number
//! of VMs that come from one snapshot. A template tells its place in `meta.json` too, as `sandbox_dir`: that of the first
//! sandbox of its line, however many templates lie between.

use std::fs;
use std::io;
use std::path::Path;

use wire::Value;

use super::RESTORE;
use crate::runfiles::RUN;
use crate::{Error, WORKDIR};

const META: &str = "meta.json";
const TMP: &str = "/tmp";

/// Checks that the disk of the snapshot in `dir` can be shown at `disk`.
///
/// # Errors
/// [`Error::SandboxDir`] when it cannot, or `dir` is a template that does not say so; [`Error::Corrupt`] when the
/// template says another place than the snapshot.
pub(super) fn check(dir: &Path, disk: &str) -> Result<(), Error> {
    let meta = dir.join(META);
    // By its text: the parts of a `Path` hide what is not plain.
    let (place, name) = disk.rsplit_once('/').unwrap_or_default();
    if let Some(told) = told(&meta)? {
        if let Some(why) = refusal(&told) {
            return Err(Error::SandboxDir { path: meta, why });
        }
        if told != place {
            let why = format!("says that sandbox_dir is {told}, and the snapshot's disk is {disk}");
            return Err(Error::Corrupt { path: meta, why });
        }
    }
    let path = dir.join(super::CONFIG);
    let taken = place == WORKDIR && [RUN, RESTORE, super::PROGRAM.name].contains(&name);
    let unnamed = ["", ".", ".."].contains(&name);
    let why = refusal(place).or_else(|| {
        (taken || unnamed).then(|| format!("the disk cannot be {disk:?}: another file is there"))
    });
    why.map_or(Ok(()), |why| Err(Error::SandboxDir { path, why }))
}

/// What a template's `meta.json` says; `None` where there is none, because this is no template.
fn told(meta: &Path) -> Result<Option<String>, Error> {
    let bytes = match fs::read(meta) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(Error::io("read", meta))?,
    };
    let json: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Error::Corrupt { path: meta.into(), why: format!("is not whole JSON: {error}") })?;
    match json.get("sandbox_dir").and_then(Value::as_str) {
        Some(told) => Ok(Some(told.to_owned())),
        None => Err(Error::SandboxDir {
            path: meta.into(),
            why: "a template must say as sandbox_dir in which directory its snapshot has the root disk"
                .into(),
        }),
    }
}

/// Why a directory cannot be made in a VMM's own /tmp, if so.
fn refusal(dir: &str) -> Option<String> {
    let no = |why: &str| Some(format!("sandbox_dir {dir:?} {why}"));
    let below = dir.strip_prefix(TMP).and_then(|rest| rest.strip_prefix('/'));
    let Some(below) = below.filter(|below| !below.is_empty()) else {
        return no("is not a directory below /tmp");
    };
    if below.split('/').any(|part| ["", ".", ".."].contains(&part)) || below.contains('\0') {
        return no("is not in its plain form, without empty parts, . and ..");
    }
    if dir != WORKDIR && Path::new(dir).starts_with(WORKDIR) {
        return no("lies inside Wrenn's own directory");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::json;

    fn checked(meta: Option<Value>, disk: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        if let Some(meta) = meta {
            fs::write(dir.path().join(META), meta.to_string()).unwrap();
        }
        check(dir.path(), disk).map_err(|error| {
            let error = wire::Error::from(error);
            format!("{} {} {}", error.kind.name(), error.code, error.message)
        })
    }

    #[test]
    fn a_place_below_tmp_in_its_plain_form_is_taken() {
        for disk in [
            "/tmp/wrenn-vm/rootfs.ext4",
            "/tmp/wrenn-vm/disk",
            "/tmp/ch-vm-sb-1/rootfs.ext4",
            "/tmp/a/b/c/disk.img",
            "/tmp/wrenn-vm-2/run",
            "/tmp/..a/...",
        ] {
            assert_eq!(checked(None, disk), Ok(()), "{disk}");
            let place = disk.rsplit_once('/').unwrap().0;
            assert_eq!(checked(Some(json!({"sandbox_dir": place, "vcpus": 1})), disk), Ok(()), "{disk}");
        }
    }

    #[test]
    fn any_other_place_is_refused_with_the_file_that_names_it() {
        for disk in [
            "",
            "rootfs.ext4",
            "tmp/x/rootfs.ext4",
            "/rootfs.ext4",
            "/tmp",
            "/tmp/rootfs.ext4",
            "/tmp//rootfs.ext4",
            "/tmp/../etc/rootfs.ext4",
            "/tmp/a/../b/rootfs.ext4",
            "/tmp/./a/rootfs.ext4",
            "/tmp//a/rootfs.ext4",
            "/tmp/a//rootfs.ext4",
            "/tmp/a/",
            "/tmp/a/.",
            "/tmp/a/..",
            "/tmp/../tmp/a/rootfs.ext4",
            "/tmpx/a/rootfs.ext4",
            "/var/lib/wrenn/rootfs.ext4",
            "/dev/mapper/x",
            "/tmp/wrenn-vm/run/rootfs.ext4",
            "/tmp/wrenn-vm/run",
            "/tmp/wrenn-vm/restore",
            "/tmp/wrenn-vm/cloud-hypervisor",
        ] {
            let refused = checked(None, disk).unwrap_err();
            assert!(refused.starts_with("invalid launch.sandbox_dir "), "{disk}: {refused}");
            assert!(refused.contains("config.json"), "{disk}: {refused}");
        }
    }

    #[test]
    fn a_template_must_tell_its_place_and_tell_it_right() {
        for meta in [json!({}), json!({"sandbox_dir": null}), json!({"sandbox_dir": 7}), json!([])] {
            let refused = checked(Some(meta.clone()), "/tmp/wrenn-vm/rootfs.ext4").unwrap_err();
            assert!(refused.starts_with("invalid launch.sandbox_dir "), "{meta}: {refused}");
            assert!(refused.contains("must say as sandbox_dir"), "{meta}: {refused}");
        }
        for told in
            ["", "/", "/tmp", "/tmp/", "/etc", "tmp/x", "/tmp/../etc", "/tmp/wrenn-vm/", "/tmp/wrenn-vm/x/.."]
        {
            let refused =
                checked(Some(json!({"sandbox_dir": told})), "/tmp/wrenn-vm/rootfs.ext4").unwrap_err();
            assert!(refused.starts_with("invalid launch.sandbox_dir "), "{told}: {refused}");
            assert!(refused.contains("meta.json") && refused.contains(told), "{refused}");
        }
        let refused = checked(Some(json!({"sandbox_dir": "/tmp/other"})), "/tmp/wrenn-vm/disk").unwrap_err();
        assert!(refused.starts_with("corrupt launch.corrupt "), "{refused}");
    }

    #[test]
    fn a_description_that_is_torn_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(META), r#"{"sandbox_dir": "/tmp/x"#).unwrap();
        let error = wire::Error::from(check(dir.path(), "/tmp/x/disk").unwrap_err());
        assert_eq!((error.kind, error.code.as_str()), (wire::Kind::Corrupt, "launch.corrupt"));
    }
}
