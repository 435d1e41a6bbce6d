//! What is being written beside its place: `.NAME.PID.partial`, until it is complete and gets its name. The pid is that of
//! who writes it, so that what the killed have left is known for it.

use std::path::{Path, PathBuf};

const END: &str = ".partial";

/// Where what shall be at `path` is written by this process, in the same directory.
pub fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}{END}", std::process::id()))
}

/// The name that this one would get, and the pid of who writes it; `None` for a file of another kind.
pub fn parse_partial(name: &str) -> Option<(&str, i32)> {
    let (name, pid) = name.strip_prefix('.')?.strip_suffix(END)?.rsplit_once('.')?;
    Some((name, pid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_written_tells_its_name_and_who_writes_it() {
        let path = partial(Path::new("/images/team/base"));
        assert_eq!(path.parent(), Some(Path::new("/images/team")));
        let name = path.file_name().and_then(|name| name.to_str()).unwrap();
        assert_eq!(parse_partial(name), Some(("base", std::process::id() as i32)));
        assert_eq!(parse_partial(".memfile.header.78.partial"), Some(("memfile.header", 78)));
        for other in ["base", ".base.partial", "base.78.partial", ".base.x.partial", ".base.78.tmp"] {
            assert_eq!(parse_partial(other), None, "{other}");
        }
    }
}
