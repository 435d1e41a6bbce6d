//! The host's side of the guest agent: see `wrenn-guest --help`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    wire::main(&guest::TOOL)
}
