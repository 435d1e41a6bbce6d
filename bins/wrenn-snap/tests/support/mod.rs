//! Memory to pack, and what a directory holds before and after.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use wrenn_tests::{Output, Roots, Value, json};

pub const PAGE: usize = 4096;

/// A directory of the test's own, and the program run in it.
pub struct Bench {
    pub roots: Roots,
}

#[allow(dead_code, reason = "each test program uses its own part")]
impl Bench {
    pub fn new() -> Self {
        Self { roots: Roots::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.roots.dir().join(name)
    }

    /// Runs wrenn-snap with a line of arguments in which `@` stands for the test's directory.
    pub fn snap(&self, line: &str) -> Output {
        self.program(line).run()
    }

    pub fn program(&self, line: &str) -> wrenn_tests::Program {
        let at = format!("{}/", self.roots.dir().display());
        let args: Vec<String> = line.split_whitespace().map(|word| word.replace('@', &at)).collect();
        self.roots.program("wrenn-snap").args(args)
    }

    pub fn done(&self, line: &str) -> Value {
        self.snap(line).success().reply()
    }

    /// A dense file of these pages, each filled with its number.
    pub fn full(&self, name: &str, pages: &[u8]) -> Vec<u8> {
        let bytes: Vec<u8> = pages.iter().flat_map(|value| [*value; PAGE]).collect();
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }

    /// A sparse file in which only some pages are written.
    pub fn diff(&self, name: &str, pages: usize, writes: &[(usize, u8)]) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len((pages * PAGE) as u64).unwrap();
        for (page, value) in writes {
            file.write_all_at(&[*value; PAGE], (page * PAGE) as u64).unwrap();
        }
    }

    /// The memory of a snapshot, one number a page.
    pub fn memory(&self, dir: &str) -> Vec<u8> {
        self.done(&format!("unpack dir=@{dir} raw=@unpacked"));
        let bytes = fs::read(self.path("unpacked")).unwrap();
        let pages = bytes.chunks(PAGE).map(|page| {
            assert!(page.iter().all(|byte| *byte == page[0]), "a page of one value");
            page[0]
        });
        pages.collect()
    }

    /// Gives the snapshot in `dir` a working set of these runs of pages, as its first restore left it.
    pub fn working_set(&self, dir: &str, runs: &[(usize, usize)]) {
        let ranges: Vec<_> =
            runs.iter().map(|(first, pages)| json!([first * PAGE, pages * PAGE, 1])).collect();
        let build = &self.done(&format!("inspect dir=@{dir}"))["build"];
        let set = json!({"version": 1, "build": build, "runs": 1, "ranges": ranges});
        fs::write(self.path(dir).join("workingset"), set.to_string()).unwrap();
    }

    /// Three pages of memory packed as `one`, and a diff on it as `two`.
    pub fn chain(&self) {
        self.full("raw", &[1, 2, 0]);
        self.done("pack raw=@raw dir=@one kind=full");
        self.diff("raw", 3, &[(1, 5), (2, 6)]);
        self.done("pack raw=@raw dir=@two kind=diff parent=@one");
    }
}

/// Everything below a directory except the locks: names, and the bytes of files. Two of these are equal when the directory
/// is as it was.
#[allow(dead_code, reason = "each test program uses its own part")]
pub fn everything(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.ends_with("run") {
            continue;
        }
        if path.is_dir() {
            found.extend(everything(&path));
            found.insert(path, None);
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, Some(bytes));
        }
    }
    found
}

/// The names in a directory, sorted.
#[allow(dead_code, reason = "each test program uses its own part")]
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
