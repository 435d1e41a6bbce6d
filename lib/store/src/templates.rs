//! Templates: `<root>/images/<name>/`, a plain image or a snapshot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sys::lock::Lock;
use sys::process::Process;
use wire::{Document, Host, Id, TemplateName};

use crate::sandboxes::remove_path;
use crate::{Error, Sandboxes};

/// What a template's directory holds.
#[derive(Debug, Clone)]
pub struct Template {
    /// Its name.
    pub name: TemplateName,
    /// Its directory.
    pub dir: PathBuf,
    /// `meta.json` of a snapshot template. A plain image has none.
    pub meta: Option<Document>,
}

impl Template {
    /// The disk.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs.ext4")
    }

    /// Whether a sandbox made from it wakes instead of booting.
    pub fn is_snapshot(&self) -> bool {
        self.meta.is_some()
    }
}

/// All templates of a root.
#[derive(Debug, Clone, Copy)]
pub struct Templates<'a> {
    host: &'a Host,
}

impl<'a> Templates<'a> {
    /// The templates of this host's root.
    pub fn of(host: &'a Host) -> Self {
        Self { host }
    }

    /// Where a template of that name is or would be.
    pub fn dir(&self, name: &TemplateName) -> PathBuf {
        self.host.root().join("images").join(name.as_str())
    }

    /// Holds off whoever makes or removes the template of that name, until a document names it.
    ///
    /// # Errors
    /// `timeout` when it was being made or removed all the time.
    pub fn hold(&self, name: &TemplateName, wait: Duration) -> Result<Lock, wire::Error> {
        self.host.lock_shared(&lock_name(name), wait)
    }

    /// Holds off whoever makes or removes the template of that name, and whoever wants to create from it.
    ///
    /// # Errors
    /// `timeout` when somebody else had it all the time.
    pub fn hold_alone(&self, name: &TemplateName, wait: Duration) -> Result<Lock, wire::Error> {
        self.host.lock(&lock_name(name), wait)
    }

    /// The template of that name.
    ///
    /// # Errors
    /// `not_found`; `corrupt` when its `meta.json` is no JSON object.
    pub fn get(&self, name: &TemplateName) -> Result<Template, Error> {
        let dir = self.dir(name);
        let rootfs = dir.join("rootfs.ext4");
        if !rootfs.is_file() {
            return Err(Error::NoTemplate { name: name.to_string(), path: rootfs });
        }
        let path = dir.join("meta.json");
        let meta = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            text => {
                let text = text.map_err(Error::file("read", &path))?;
                let corrupt = |why: String| Error::Corrupt { path: path.clone(), why };
                let value = serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
                Some(Document::from_value(value).map_err(|error| corrupt(error.message))?)
            }
        };
        Ok(Template { name: name.clone(), dir, meta })
    }

    /// Fails if the name is taken.
    ///
    /// # Errors
    /// `conflict`.
    pub fn check_free(&self, name: &TemplateName) -> Result<(), Error> {
        if fs::symlink_metadata(self.dir(name)).is_ok() {
            return Err(Error::TemplateExists { name: name.to_string() });
        }
        Ok(())
    }

    /// All templates, by name.
    ///
    /// # Errors
    /// What reading the directories said.
    pub fn list(&self) -> Result<Vec<Template>, Error> {
        let images = self.host.root().join("images");
        let mut found = Vec::new();
        for first in names(&images)? {
            let mut candidates = vec![first.clone()];
            candidates
                .extend(names(&images.join(&first))?.into_iter().map(|second| format!("{first}/{second}")));
            for name in candidates.iter().filter_map(|name| TemplateName::new(name).ok()) {
                match self.get(&name) {
                    Err(Error::NoTemplate { .. }) => {}
                    template => found.push(template?),
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Removes what killed programs have left of templates that they were making or removing. What somebody still works on
    /// stays. Gives what went.
    ///
    /// # Errors
    /// What the file system said.
    pub fn discard_unfinished(&self) -> Result<Vec<PathBuf>, Error> {
        let images = self.host.root().join("images");
        let mut removed = Vec::new();
        for dir in names(&images)?.into_iter().map(|team| images.join(team)).chain([images.clone()]) {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(unfinished) = name.to_str().and_then(|name| Unfinished::parse(&images, &dir, name))
                else {
                    continue;
                };
                if let Some(_lock) = unfinished.abandoned(self.host) {
                    remove_path(&entry.path())?;
                    removed.push(entry.path());
                }
            }
        }
        Ok(removed)
    }

    /// Where the disk of a template in the making is: beside its place, so that nothing crosses a file system.
    pub fn unfinished_disk(&self, name: &TemplateName, id: &Id) -> PathBuf {
        self.dir(name).with_file_name(format!(".rootfs-{id}.ext4"))
    }

    /// Removes a template that no sandbox stands on. The caller holds it alone.
    ///
    /// # Errors
    /// `not_found`; `conflict` naming the sandboxes that use its disk or its memory.
    pub fn remove(&self, name: &TemplateName) -> Result<(), Error> {
        let template = self.get(name)?;
        let users = self.users(&template)?;
        if !users.is_empty() {
            return Err(Error::TemplateInUse { name: name.to_string(), users });
        }
        // In one step: half a template must not be taken for one.
        let beside = wire::partial(&template.dir);
        remove_path(&beside)?;
        fs::rename(&template.dir, &beside).map_err(Error::file("rename", &template.dir))?;
        remove_path(&beside)
    }

    /// Ids of the sandboxes whose documents name a file of this template.
    fn users(&self, template: &Template) -> Result<Vec<String>, Error> {
        let sandboxes = Sandboxes::of(self.host);
        let mut users = Vec::new();
        for id in sandboxes.ids()? {
            let document = match sandboxes.load(&id) {
                Err(Error::NoSandbox { .. }) => continue,
                document => document?,
            };
            let named = |path: &str| document.get(path).and_then(|value| value.as_str()).map(PathBuf::from);
            let paths = ["rootfs", "cow.image", "snapshot.dir", "vm.base"];
            if paths.iter().filter_map(|path| named(path)).any(|path| path.starts_with(&template.dir)) {
                users.push(id.to_string());
            }
        }
        Ok(users)
    }
}

/// Something beside templates that is none.
enum Unfinished {
    /// A template's directory in the making or on its way out.
    Directory(TemplateName, i32),
    /// The flattened disk of this sandbox.
    Disk(Id),
}

impl Unfinished {
    fn parse(images: &Path, dir: &Path, name: &str) -> Option<Self> {
        if let Some(id) = name.strip_prefix(".rootfs-").and_then(|rest| rest.strip_suffix(".ext4")) {
            return Some(Self::Disk(Id::new(id).ok()?));
        }
        let (leaf, pid) = wire::parse_partial(name)?;
        let whole = dir.join(leaf);
        let template = TemplateName::new(whole.strip_prefix(images).ok()?.to_str()?).ok()?;
        Some(Self::Directory(template, pid))
    }

    /// The lock of whoever could be at work on it, if nobody is.
    fn abandoned(&self, host: &Host) -> Option<Lock> {
        match self {
            Self::Disk(id) => host.lock(&format!("{id}.op"), Duration::ZERO).ok(),
            // One that is made without the supervisor has no lock.
            Self::Directory(_, pid) if Process::of_pid(*pid).is_ok() => None,
            Self::Directory(name, _) => host.lock(&lock_name(name), Duration::ZERO).ok(),
        }
    }
}

/// A name of two parts stays one file's. No id has a dot in it, so that this is nobody else's lock.
fn lock_name(name: &TemplateName) -> String {
    format!("{}.template", name.as_str().replace('/', "."))
}

/// Names of the directories in a directory that may be parts of a template's name.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries.map_err(Error::file("read", dir))?,
    };
    Ok(entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| TemplateName::new(name).is_ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_a_sandbox_stands_on_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), root.path().join("run"));
        let templates = Templates::of(&host);
        let name = TemplateName::new("team/base").unwrap();
        assert!(matches!(templates.get(&name), Err(Error::NoTemplate { .. })));
        fs::create_dir_all(templates.dir(&name)).unwrap();
        fs::write(templates.dir(&name).join("rootfs.ext4"), b"disk").unwrap();
        assert!(matches!(templates.check_free(&name), Err(Error::TemplateExists { .. })));
        assert_eq!(templates.list().unwrap().len(), 1);
        let id = Id::new("user").unwrap();
        let sandboxes = Sandboxes::of(&host);
        sandboxes.reserve(&id).unwrap();
        let mut document = Document::new();
        document.set("id", "user");
        document.set("rootfs", templates.get(&name).unwrap().rootfs().to_str().unwrap());
        sandboxes.save(&id, &document).unwrap();
        assert!(
            matches!(templates.remove(&name), Err(Error::TemplateInUse { users, .. }) if users == ["user"])
        );
        sandboxes.remove(&id).unwrap();
        templates.remove(&name).unwrap();
        assert!(templates.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(root.path().join("images/team")).unwrap().count(), 0);
    }

    #[test]
    fn what_the_killed_have_left_beside_templates_goes_and_what_is_being_made_stays() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), root.path().join("run"));
        let (templates, team) = (Templates::of(&host), root.path().join("images/team"));
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let dead = team.join(format!(".base.{}.partial", gone.id()));
        let alive = team.join(format!(".base.{}.partial", std::process::id()));
        let held = root.path().join(format!("images/.held.{}.partial", gone.id()));
        let (disk, busy) = (team.join(".rootfs-a.ext4"), team.join(".rootfs-b.ext4"));
        for dir in [&dead, &alive, &held, &team.join("base")] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("rootfs.ext4"), b"disk").unwrap();
        }
        for file in [&disk, &busy, &team.join(".strange")] {
            fs::write(file, b"disk").unwrap();
        }
        let _held = templates.hold_alone(&TemplateName::new("held").unwrap(), Duration::ZERO).unwrap();
        let _busy = host.lock("b.op", Duration::ZERO).unwrap();
        let mut removed = templates.discard_unfinished().unwrap();
        removed.sort();
        assert_eq!(removed, [dead, disk]);
        assert!([alive, held, busy, team.join(".strange")].iter().all(|path| path.exists()));
        assert_eq!(templates.list().unwrap().len(), 1);
    }
}
