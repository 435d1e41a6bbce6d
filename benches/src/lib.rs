//! Shared parts of the benches of the page server: a VMM that touches its memory ([`vmm`]), and what answers its faults
//! ([`handlers`]). Both are processes of their own: a bench starts itself again, under another first word.
#![forbid(unsafe_code)]

pub mod handlers;
pub mod vmm;

use std::process::ExitCode;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes of the VMM's memory.
pub const MEMORY: usize = 512 << 20;

/// Plays the part that this process was started for; `None` for the bench itself. A bench under the name `wrenn-uffd` is
/// that program.
pub fn role() -> Option<ExitCode> {
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
