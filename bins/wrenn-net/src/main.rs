//! `wrenn-net`: network slots. The work is in lib/net; docs/wrenn-net.md is the page about it.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    wire::main(&net::TOOL)
}
