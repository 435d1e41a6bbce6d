//! Memory that is no file: what comes from a pipe, and what another process has.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use support::{Bench, PAGE, everything, names};
use wrenn_tests::{Value, json};

/// Pages of these values.
fn pages(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| [*value; PAGE]).collect()
}

#[test]
fn memory_from_a_pipe_is_packed_without_a_file_between() {
    let bench = Bench::new();
    let values: Vec<u8> = (0..1000).map(|page| if page % 5 < 2 { page as u8 } else { 0 }).collect();
    let packed = bench.program("pack raw=- dir=@one kind=full").stdin(pages(&values)).run().success().reply();
    let stored = values.iter().filter(|value| **value != 0).count();
    assert_eq!(packed["blocks"], json!({"stored": stored, "zero": 1000 - stored, "inherited": 0}));
    assert_eq!(packed["raw"], "-", "there is no file that could be used up");
    assert!(bench.memory("one") == values);
    bench.done("verify dir=@one");

    // On top of a parent: only what differs.
    let mut changed = values.clone();
    (changed[7], changed[8], changed[500]) = (77, 78, 0);
    let packed = bench
        .program("pack raw=- dir=@two kind=full parent=@one")
        .stdin(pages(&changed))
        .run()
        .success()
        .reply();
    let zero = changed.iter().filter(|value| **value == 0).count();
    assert_eq!(packed["blocks"], json!({"stored": 2, "zero": zero, "inherited": 998 - zero}));
    assert!(bench.memory("two") == changed);
    assert_eq!(names(&bench.path("two")).len(), 5, "a header, two diff files and their checksums");
}

#[test]
fn a_pipe_that_ends_too_early_leaves_nothing() {
    let bench = Bench::new();
    bench.chain();
    let before = everything(bench.roots.dir());
    for (line, bytes, message) in [
        (
            "pack raw=- dir=@new kind=full",
            2 * PAGE + 1,
            "gave 8193 bytes, not a positive multiple of the block size 4096",
        ),
        ("pack raw=- dir=@new kind=full size:=12288", 2 * PAGE, "gave 8192 bytes, not 12288"),
        ("pack raw=- dir=@new kind=full parent=@one", 2 * PAGE, "gave 8192 bytes, not 12288"),
        ("pack raw=- dir=@new kind=full parent=@one", 4 * PAGE, "gave 16384 bytes, not 12288"),
    ] {
        let error = bench.program(line).stdin(vec![1; bytes]).run().status_is(9).reply()["error"].clone();
        assert_eq!(error["code"], "snap.pipe_length", "{line}: {error}");
        assert!(error["message"].as_str().unwrap().contains(message), "{line}: {error}");
        assert!(everything(bench.roots.dir()) == before, "{line} left something");
    }
}

/// A process that has 300 pages of memory, and says where.
struct Target {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Target {
    /// Perl, which every Debian has: two strings, the second page by page, and their addresses.
    fn start() -> Self {
        let program = r#"
            $| = 1;
            my @kept;
            for my $n (1, 2) {
                my $text = '';
                $text .= chr($n * 100 + $_ % 50) x 4096 for 0 .. 149;
                substr($text, 4096 * 7, 4096) = "\0" x 4096;
                push @kept, \$text;
                print unpack('Q', pack('P', $text)), "\n";
            }
            <STDIN>;
        "#;
        let mut child = Command::new("perl")
            .args(["-e", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("perl");
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn address(&mut self) -> u64 {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().parse().unwrap()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(bench: &Bench, dir: &str, pid: u32, regions: Value) -> Value {
    json!({"raw": {"pid": pid, "regions": regions}, "dir": bench.path(dir), "kind": "full"})
}

#[test]
fn the_memory_of_a_process_is_packed_region_by_region_and_what_it_has_not_is_named() {
    let bench = Bench::new();
    let mut target = Target::start();
    let (one, two) = (target.address(), target.address());
    let half = 150 * PAGE as u64;
    let pid = target.child.id();
    // The second string first, then the first one without its first page.
    let regions = json!([[two, half], [one + PAGE as u64, half - PAGE as u64]]);
    let document = request(&bench, "one", pid, regions.clone());
    let packed = bench.program("pack").stdin(document.to_string()).run().success().reply();
    assert_eq!(packed["blocks"], json!({"stored": 297, "zero": 2, "inherited": 0}));
    let value = |base: u32, page: u32| if page == 7 { 0 } else { (base + page % 50) as u8 };
    let expected: Vec<u8> =
        (0..150).map(|page| value(200, page)).chain((1..150).map(|page| value(100, page))).collect();
    assert!(bench.memory("one") == expected);

    let before = everything(bench.roots.dir());
    // The first page of an address space is never mapped.
    let document = request(&bench, "new", pid, json!([[two, half], [0, PAGE]]));
    let error = bench.program("pack").stdin(document.to_string()).run().reply()["error"].clone();
    assert_eq!(error["code"], "snap.process", "{error}");
    assert!(error["message"].as_str().unwrap().contains("no readable memory at 0x"), "{error}");
    assert!(everything(bench.roots.dir()) == before);

    drop(target.child.stdin.take());
    target.child.wait().unwrap();
    let document = request(&bench, "new", pid, regions);
    let error = bench.program("pack").stdin(document.to_string()).run().status_is(3).reply()["error"].clone();
    assert_eq!(error["code"], "snap.process", "{error}");
    assert!(everything(bench.roots.dir()) == before);
}

#[test]
fn a_pipe_without_an_end_is_interrupted_and_leaves_nothing() {
    let bench = Bench::new();
    let before = everything(bench.roots.dir());
    let mut program = bench.program("pack raw=- dir=@new kind=full");
    let mut child = program.command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&pages(&[1; 700])).unwrap();
    // More than the pipe holds was written, so it has begun.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGTERM).unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    drop(stdin);
    assert!(everything(bench.roots.dir()) == before);
    assert!(fs::metadata(bench.path("new")).is_err());
}
