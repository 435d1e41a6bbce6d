//! Root disks: see `wrenn-cow --help`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    wire::main(&cow::TOOL)
}
