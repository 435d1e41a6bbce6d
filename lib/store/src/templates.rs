//! Templates: `<root>/images/<name>/`, a plain image or a snapshot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use wire::{Document, Host, TemplateName};

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

    /// Removes a template that no sandbox stands on.
    ///
    /// # Errors
    /// `not_found`; `conflict` naming the sandboxes that use its disk or its memory.
    pub fn remove(&self, name: &TemplateName) -> Result<(), Error> {
        let template = self.get(name)?;
        let users = self.users(&template)?;
        if !users.is_empty() {
            return Err(Error::TemplateInUse { name: name.to_string(), users });
        }
        remove_path(&template.dir)
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
    use wire::Id;

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
    }
}
