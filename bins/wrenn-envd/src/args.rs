//! The command line.

use std::{ffi::OsString, net::IpAddr};

use crate::{PORT, process::identity::Identity};

pub const USAGE: &str = "\
Usage: wrenn-envd [--host ADDRESS] [--port PORT]

The guest agent of Wrenn: runs processes, moves files and answers health, metrics and
init requests over HTTP. As pid 1 it also brings the guest up; its arguments are then ignored.

  --host ADDRESS   address to listen on (default 127.0.0.1; 0.0.0.0 as pid 1)
  --port PORT      port to listen on (default 49983; 0 takes a free one and prints it)
  --help           this text
  --version        the version

Example: wrenn-envd --port 49983 & curl http://127.0.0.1:49983/health";

/// What the command line asks for.
pub enum Command {
    Serve(Args),
    /// The hidden second half of starting a process: become a user, then exec.
    Become(Identity),
    Print(String),
}

pub struct Args {
    pub host: IpAddr,
    pub port: u16,
}

/// Reads the arguments after the program's name.
pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
    let mut parsed = Args { host: IpAddr::from([127, 0, 0, 1]), port: PORT };
    while let Some(arg) = args.next() {
        let arg = arg.into_string().map_err(|arg| format!("{arg:?} is not UTF-8"))?;
        let (flag, inline) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let mut value = || {
            let given = inline.clone().or_else(|| args.next().and_then(|value| value.into_string().ok()));
            given.ok_or_else(|| format!("{flag} needs a value"))
        };
        match flag {
            "--host" => {
                let host = value()?;
                parsed.host = host.parse().map_err(|_| format!("--host {host}: not an IP address"))?;
            }
            "--port" => {
                let port = value()?;
                parsed.port = port.parse().map_err(|_| format!("--port {port}: not a port"))?;
            }
            "--help" | "-h" => return Ok(Command::Print(USAGE.to_owned())),
            "--version" | "-V" => {
                return Ok(Command::Print(format!("wrenn-envd {}", env!("CARGO_PKG_VERSION"))));
            }
            crate::process::identity::FLAG => return Identity::parse(args).map(Command::Become),
            _ => return Err(format!("unknown argument {arg}")),
        }
    }
    Ok(Command::Serve(parsed))
}
