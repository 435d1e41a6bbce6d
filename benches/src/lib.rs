//! Shared parts of the benches of the page server: a VMM that touches its memory ([`vmm`]), and what answers its faults
//! ([`handlers`]). Both are processes of their own: a bench starts itself again, under another first word.
#![forbid(unsafe_code)]

pub mod handlers;
pub mod vmm;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of the VMM's memory.
pub const MEMORY: usize = 512 << 20;

/// A bench's `main`: makes the comparison, or plays the part that this process was started for.
pub fn run(compare: impl FnOnce()) -> ExitCode {
    if let Some(done) = role() {
        return done;
    }
    // `cargo bench` passes it; `cargo test` and `cargo nextest list` ask for other things.
    if std::env::args().any(|argument| argument == "--bench") {
        compare();
    }
    ExitCode::SUCCESS
}

/// Writes the VMM's memory into a new file, and waits until the disk has it: it is in the page cache then, and in nobody's
/// way.
///
/// # Panics
/// When it cannot be written.
pub fn write_image(path: &Path) {
    let file = File::create_new(path).expect("a file");
    let block: Vec<u8> = (0..1 << 20).map(vmm::content).collect();
    for at in (0..MEMORY).step_by(block.len()) {
        file.write_all_at(&block, at as u64).expect("written");
    }
    file.sync_all().expect("synced");
}

/// The part of another process. A bench under the name `wrenn-uffd` is that program.
fn role() -> Option<ExitCode> {
    let words: Vec<_> = std::env::args().collect();
    if words[0].ends_with(handlers::PROGRAM) {
        return Some(uffd::role().unwrap_or_else(|| wire::main(&uffd::TOOL)));
    }
    match words.get(1).map(String::as_str) {
        Some(handlers::ROLE) => handlers::run(&words[2..]),
        Some(vmm::ROLE) => vmm::run(&words[2..]),
        // Other words are those of `cargo bench`.
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}
