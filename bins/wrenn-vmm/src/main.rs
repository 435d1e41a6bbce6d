//! wrenn-vmm: parse the command line, run, exit.

use std::process::ExitCode;

use vmm::args::{self, Command};
use vmm::controller::Ended;

fn main() -> ExitCode {
    let args = match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(args)) => args,
        Ok(Command::Help) => {
            print!("{}", args::HELP);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            println!("wrenn-vmm v{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n\nFor more information try --help.");
            return ExitCode::from(error.status());
        }
    };
    match vmm::run::run(&args) {
        Ok(Ended::ByGuest) => ExitCode::SUCCESS,
        Ok(Ended::Failed(why)) => {
            log::error!("{why}");
            eprintln!("Error: {why}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}
