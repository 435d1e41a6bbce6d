//! Users and groups, read from /etc/passwd and /etc/group: a static program has no name service.

use std::path::PathBuf;

/// A user of the guest, as a process needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, the primary one included.
    pub groups: Vec<u32>,
    pub home: PathBuf,
}

impl User {
    /// Looks a user up by name. `None` when there is none.
    pub fn named(name: &str) -> Option<Self> {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
        find(&passwd, &group, |entry| entry.name == name).or_else(|| (name == "root").then(Self::root))
    }

    /// The user this agent runs as.
    pub fn own() -> Self {
        let uid = nix::unistd::geteuid().as_raw();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
        find(&passwd, &group, |entry| entry.uid == uid).unwrap_or_else(|| match uid {
            0 => Self::root(),
            _ => {
                let gid = nix::unistd::getegid().as_raw();
                Self { name: uid.to_string(), uid, gid, groups: vec![gid], home: "/".into() }
            }
        })
    }

    /// A path as this user means it: `~` and relative paths start at home.
    pub fn path(&self, path: &str) -> PathBuf {
        match path.strip_prefix('~') {
            Some("") => self.home.clone(),
            Some(rest) if rest.starts_with('/') => self.home.join(rest.trim_start_matches('/')),
            _ => self.home.join(path),
        }
    }

    /// An image without /etc/passwd still has a root.
    fn root() -> Self {
        Self { name: "root".into(), uid: 0, gid: 0, groups: vec![0], home: "/root".into() }
    }
}

/// The name of a user id, or its number.
pub fn user_name(uid: u32) -> String {
    name_of("/etc/passwd", uid)
}

/// The name of a group id, or its number.
pub fn group_name(gid: u32) -> String {
    name_of("/etc/group", gid)
}

fn name_of(file: &str, id: u32) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let wanted = id.to_string();
    let mut lines = text.lines().map(|line| line.split(':'));
    lines
        .find_map(|mut fields| {
            let name = fields.next()?;
            (fields.nth(1)? == wanted).then(|| name.to_owned())
        })
        .unwrap_or(wanted)
}

/// The first passwd entry that fits, with its groups. Lines that are not entries are passed over.
fn find(passwd: &str, group: &str, fits: impl Fn(&User) -> bool) -> Option<User> {
    let mut user = passwd.lines().filter_map(parse_passwd).find(fits)?;
    let groups = group.lines().filter_map(|line| {
        let mut fields = line.split(':').skip(2);
        let gid: u32 = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user.name).then_some(gid)
    });
    user.groups.extend(groups.collect::<Vec<_>>());
    user.groups.sort_unstable();
    user.groups.dedup();
    Some(user)
}

/// `name:password:uid:gid:comment:home:shell`
fn parse_passwd(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
    let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
    Some(User { name: name.to_owned(), uid, gid, groups: vec![gid], home: home.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken:x\n\
                          user:x:1000:1000:,,,:/home/user:/bin/bash\nodd:x:minus:1::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\nusers:x:100:userx,user\nbad:x:\n";

    #[test]
    fn a_user_comes_with_home_and_all_groups() {
        let user = find(PASSWD, GROUP, |user| user.name == "user").unwrap();
        assert_eq!((user.uid, user.gid, user.home), (1000, 1000, "/home/user".into()));
        assert_eq!(user.groups, [27, 100, 1000]);
    }

    #[test]
    fn lines_that_are_no_entries_name_nobody() {
        for name in ["broken", "odd", "# a comment", ""] {
            assert_eq!(find(PASSWD, GROUP, |user| user.name == name), None, "{name}");
        }
    }
}
