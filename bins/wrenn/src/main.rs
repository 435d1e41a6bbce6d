//! Sandboxes by name: see `wrenn --help`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    wire::main(&supervisor::TOOL)
}
