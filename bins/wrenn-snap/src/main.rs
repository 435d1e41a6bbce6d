//! `wrenn-snap`: memory images. The work is in lib/snap; docs/wrenn-snap.md is the page about it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    wire::main(&snap::TOOL)
}
