//! `wrenn-envd`: the guest agent. As pid 1 it is the guest's whole user space (mounts, network, reaping,
//! shutdown); as an ordinary process it only serves. Either way it runs processes, moves files and answers the
//! host on one port, in the protocol of e2b's envd.
#![deny(unsafe_code)] // but for two ioctls in guest/random.rs: docs/decisions/004.md

mod agent;
mod args;
mod filesystem;
mod guest;
mod http;
mod log;
mod process;
mod proto;
mod server;
mod users;

use std::process::ExitCode;

use args::{Args, Command};
use log::say;

/// The port the field's clients expect an agent on.
const PORT: u16 = 49983;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return guest::main();
    }
    match args::parse(std::env::args_os().skip(1)) {
        Ok(Command::Serve(args)) => serve(&args),
        Ok(Command::Become(identity)) => identity.exec(),
        Ok(Command::Print(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("wrenn-envd: {message}\n{}", args::USAGE);
            ExitCode::from(2)
        }
    }
}

/// Serves as an ordinary process until a signal ends it. The first line on stdout says where it listens.
fn serve(args: &Args) -> ExitCode {
    let served = runtime().and_then(|runtime| {
        runtime.block_on(async {
            let listener = server::listen((args.host, args.port).into())?;
            println!("wrenn-envd: listening on {}", listener.local_addr()?);
            let agent = agent::Agent::start(agent::Role::Process)?;
            tokio::select! {
                served = server::run(listener, agent) => served,
                signalled = until_signal() => signalled,
            }
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say!("{}:{}: {error}", args.host, args.port);
            ExitCode::FAILURE
        }
    }
}

/// One thread runs everything that waits, a few more come and go for file I/O: idle memory is what counts here.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
}

async fn until_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
    Ok(())
}
