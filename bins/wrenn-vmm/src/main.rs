//! wrenn-vmm: parse the command line, run, exit.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
