//! VMM processes: see `wrenn-launch --help`. It is its own child half too: what becomes the VMM.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    launch::child::main(std::env::args_os().skip(1)).unwrap_or_else(|| wire::main(&launch::TOOL))
}
