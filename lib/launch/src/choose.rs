//! Which VMM a sandbox gets.

use std::path::{Path, PathBuf};

use wire::Document;

use crate::Error;
use crate::driver::{self, ALL, Abilities, Driver};

/// A VMM, and its program on this host.
#[derive(Clone)]
pub struct Choice {
    pub(crate) driver: &'static dyn Driver,
    /// The program's file.
    pub program: PathBuf,
}

impl Choice {
    /// What `spec.vmm` and `vm.vmm` call it.
    pub fn name(&self) -> &'static str {
        self.driver.name()
    }
}

/// The VMM for a sandbox that is to boot: the one that `spec.vmm` names; where it names none, the first that is there,
/// in the order of `wrenn-launch boot --help`. A `vmm_path` alone is a program of the VMM whose name its own begins
/// with, of Firecracker where that says nothing.
///
/// # Errors
/// `unsupported` when there is no driver of that name or no program; `invalid` or `not_found` when a path that the
/// request or the environment names is not one.
pub fn choose(document: &Document) -> Result<Choice, wire::Error> {
    if let Some(driver) = driver::of_spec(document)? {
        return Ok(Choice { driver, program: driver.program().find(document)? });
    }
    let choice = match document.find::<PathBuf>("vmm_path")? {
        Some(path) => {
            let driver = named_like(&path);
            Choice { driver, program: driver.program().find(document)? }
        }
        None => first_installed()?,
    };
    log::info!("spec.vmm names no VMM: {}, {}", choice.name(), choice.program.display());
    Ok(choice)
}

/// The VMM for a sandbox that is to wake: the one whose state lies in the snapshot's directory.
///
/// # Errors
/// As [`choose`]; `not_found` when no VMM's state is there; `invalid` when it is not that of `spec.vmm`.
pub(crate) fn for_snapshot(document: &Document, dir: &Path) -> Result<Choice, wire::Error> {
    let asked = driver::of_spec(document)?;
    let driver = of_snapshot(dir).ok_or_else(|| no_state(dir))?;
    if let Some(asked) = asked.filter(|asked| asked.name() != driver.name()) {
        let dir = dir.into();
        return Err(Error::OtherVmm { dir, vmm: driver.name(), asked: asked.name() }.into());
    }
    Ok(Choice { driver, program: driver.program().find(document)? })
}

fn no_state(dir: &Path) -> Error {
    let files = ALL.iter().map(|driver| driver.state_files().join(" and ")).collect::<Vec<_>>().join("; ");
    Error::NoState { dir: dir.into(), files }
}

/// What the VMM of a sandbox can do: the one it has, else the one it is to have.
///
/// # Errors
/// `unsupported` when there is no driver of that name; `invalid` when neither `vm.vmm` nor `spec.vmm` names one.
pub fn abilities(document: &Document) -> Result<Abilities, wire::Error> {
    let driver = match document.get("vm.vmm") {
        Some(_) => driver::of_vm(document)?,
        None => driver::of_spec(document)?.ok_or_else(|| wire::Error::field("spec.vmm", "missing"))?,
    };
    Ok(driver.abilities())
}

/// Checks that the snapshot in `dir` is one that a VMM can be asked to load: its VMM's state is there, and its root disk
/// has a place that can be made. Nothing is touched.
///
/// # Errors
/// `not_found` when no VMM's state is there; `invalid` or `corrupt` when the disk's place cannot be made or is not told.
pub fn check_snapshot(dir: &Path) -> Result<(), wire::Error> {
    let driver = of_snapshot(dir).ok_or_else(|| no_state(dir))?;
    Ok(driver.disk_place(dir).map(drop)?)
}

/// Which VMM a snapshot is of, by the state that lies in its directory.
pub fn vmm_of_snapshot(dir: &Path) -> Option<&'static str> {
    of_snapshot(dir).map(Driver::name)
}

fn of_snapshot(dir: &Path) -> Option<&'static dyn Driver> {
    let is_of = |driver: &&&dyn Driver| driver.state_files().iter().all(|name| dir.join(name).exists());
    ALL.iter().find(is_of).copied()
}

fn named_like(program: &Path) -> &'static dyn Driver {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    ALL.iter().find(|driver| name.starts_with(driver.name())).copied().unwrap_or(ALL[0])
}

fn first_installed() -> Result<Choice, Error> {
    for driver in ALL.iter().copied() {
        if let Some(program) = driver.program().installed()? {
            return Ok(Choice { driver, program });
        }
    }
    let absent: Vec<_> = ALL.iter().map(|driver| driver.program().absent()).collect();
    Err(Error::NoVmm { absent: absent.join("; ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_of_the_vmm_whose_state_it_holds_and_of_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let mut document = Document::new();
        let refused = |document: &Document| for_snapshot(document, dir.path()).err().unwrap();
        assert_eq!(refused(&document).code, "launch.no_state");
        for (files, vmm, other) in [
            (&["snapfile"][..], "firecracker", "wrenn-vmm"),
            (&["config.json", "state.json"], "cloud-hypervisor", "firecracker"),
            (&["wrenn-vmm.state"], "wrenn-vmm", "firecracker"),
        ] {
            for file in files {
                assert_eq!(vmm_of_snapshot(dir.path()), None, "not without {file}");
                std::fs::write(dir.path().join(file), "").unwrap();
            }
            assert_eq!(vmm_of_snapshot(dir.path()), Some(vmm));
            document.set("vmm_path", "/bin/sh");
            document.remove("spec");
            assert_eq!(for_snapshot(&document, dir.path()).unwrap().name(), vmm);
            document.set("spec.vmm", other);
            let error = refused(&document);
            assert_eq!((error.code.as_str(), error.kind), ("launch.other_vmm", wire::Kind::Invalid));
            assert!(error.message.contains(vmm) && error.message.contains(other), "{}", error.message);
            for file in files {
                std::fs::remove_file(dir.path().join(file)).unwrap();
            }
        }
    }

    #[test]
    fn a_program_of_the_requests_own_is_taken_for_what_its_name_says() {
        for (path, vmm) in [
            ("/opt/firecracker-v1.16.1-x86_64", "firecracker"),
            ("/opt/cloud-hypervisor-static", "cloud-hypervisor"),
            ("/opt/wrenn-vmm", "wrenn-vmm"),
            ("/opt/mine", "firecracker"),
        ] {
            assert_eq!(named_like(Path::new(path)).name(), vmm, "{path}");
        }
    }
}
