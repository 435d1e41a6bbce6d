//! The agent as pid 1: mounts, name, network, then serving, until something asks the guest to stop.

mod cmdline;
pub mod identity;
mod mounts;
mod network;
mod random;
mod shutdown;

use std::{fs, io, net::Ipv4Addr, process::ExitCode};

use cmdline::Cmdline;
use nix::sys::reboot::{RebootMode, set_cad_enabled};

use crate::{PORT, agent, log::say, runtime, server};

/// Runs the guest. Comes back only when it cannot go on, and then not quietly: the guest restarts, which the VMM
/// sees, rather than to live on without an agent.
pub fn main() -> ExitCode {
    let mode = bring_up().unwrap_or_else(|error| {
        say!("fatal: {error}");
        RebootMode::RB_AUTOBOOT
    });
    shutdown::stop(mode)
}

fn bring_up() -> io::Result<RebootMode> {
    mounts::mount_all();
    mounts::console();
    // Ctrl-Alt-Del becomes a SIGINT to pid 1, and so a clean end.
    set_cad_enabled(false).unwrap_or_else(|error| say!("ctrl-alt-del: {error}"));
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let address = Cmdline::parse(&cmdline).unwrap_or_else(|error| {
        say!("{error}; the network stays down");
        None
    });
    name(address.as_ref());

    runtime()?.block_on(async {
        let asked = shutdown::asked()?;
        let agent = agent::Agent::start(agent::Role::Guest)?;
        // Listening comes first: 0.0.0.0 needs no address, and the host's first try may find the port open.
        let listener = server::listen((Ipv4Addr::UNSPECIFIED, PORT).into())?;
        let network = async {
            if let Err(error) = network::configure(address.as_ref()).await {
                say!("network: {error}");
            }
            say!("version {} serves on port {PORT}", env!("CARGO_PKG_VERSION"));
            std::future::pending::<io::Result<RebootMode>>().await
        };
        let processes = agent.processes.clone();
        let mode = tokio::select! {
            mode = asked => Ok(mode),
            served = server::run(listener, agent) => served.map(|()| RebootMode::RB_AUTOBOOT),
            never = network => never,
        }?;
        shutdown::settle(&processes).await?;
        Ok(mode)
    })
}

/// The host name: the kernel command line's, else the image's, else ours.
fn name(address: Option<&Cmdline>) {
    let image = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let given = address.and_then(|address| address.hostname.clone());
    let name = given.or_else(|| Some(image.trim().to_owned()).filter(|name| !name.is_empty()));
    let name = name.unwrap_or_else(|| "wrenn".to_owned());
    if let Err(error) = nix::unistd::sethostname(&name) {
        say!("hostname {name}: {error}");
    }
}
