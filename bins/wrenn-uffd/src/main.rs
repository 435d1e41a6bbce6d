//! `wrenn-uffd`: the page server (docs/wrenn-uffd.md).
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    // The server and its guardian are this same program, started again.
    uffd::role().unwrap_or_else(|| wire::main(&uffd::TOOL))
}
