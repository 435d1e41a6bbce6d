//! The network of the kernel command line, over netlink: lo, then the device with its address and way out.

use std::{fmt::Write as _, fs, io, net::Ipv4Addr, time::Duration};

use futures::TryStreamExt as _;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use super::cmdline::Cmdline;

/// How long the device's driver may take to find it.
const APPEARS: Duration = Duration::from_secs(10);

/// Why the network is not as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    #[error("{doing}: {source}")]
    Netlink { doing: &'static str, source: rtnetlink::Error },
    #[error("{0} did not appear within {APPEARS:?}")]
    NoDevice(String),
}

/// Brings up lo, and the asked device with its address, default route and name servers. What is there already is
/// left: a kernel with IP_PNP has done some of it.
pub async fn configure(asked: Option<&Cmdline>) -> Result<(), Error> {
    // Listening for new links starts before the first look, so that none is missed between.
    let (connection, handle, mut news) = new_multicast_connection(&[MulticastGroup::Link])?;
    let connection = tokio::spawn(connection);
    let configured = async {
        up(&handle, "lo").await?;
        let Some(asked) = asked else { return Ok(()) };
        let appears = async {
            while index(&handle, &asked.device).await.is_none() {
                if futures::StreamExt::next(&mut news).await.is_none() {
                    return; // the connection ended; `up` says how
                }
            }
        };
        let no_device = |_| Error::NoDevice(asked.device.clone());
        tokio::time::timeout(APPEARS, appears).await.map_err(no_device)?;
        let index = up(&handle, &asked.device).await?;

        let add = handle.address().add(index, asked.address.into(), asked.prefix).execute().await;
        there_already(add, "adding the address")?;
        if let Some(gateway) = asked.gateway {
            let route =
                RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
            there_already(handle.route().add(route).execute().await, "adding the default route")?;
        }
        name_servers(&asked.dns)?;
        Ok(())
    }
    .await;
    connection.abort();
    configured
}

/// Sets a link up and gives its index.
async fn up(handle: &Handle, name: &str) -> Result<u32, Error> {
    let index = index(handle, name).await.ok_or_else(|| Error::NoDevice(name.to_owned()))?;
    let set = handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await;
    set.map_err(|source| Error::Netlink { doing: "setting a link up", source })?;
    Ok(index)
}

async fn index(handle: &Handle, name: &str) -> Option<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    links.try_next().await.ok().flatten().map(|link| link.header.index)
}

fn there_already(added: Result<(), rtnetlink::Error>, doing: &'static str) -> Result<(), Error> {
    match added {
        Err(rtnetlink::Error::NetlinkError(error))
            if error.raw_code() == -(nix::errno::Errno::EEXIST as i32) =>
        {
            Ok(())
        }
        other => other.map_err(|source| Error::Netlink { doing, source }),
    }
}

/// The command line's name servers win over the image's.
fn name_servers(servers: &[Ipv4Addr]) -> io::Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}"); // a String takes all
    }
    fs::write("/etc/resolv.conf", text)
}
