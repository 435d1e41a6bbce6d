//! `wrenn-net status`: what the kernel knows about a slot.

use wire::{Call, Reply, json};

use crate::Slot;
use crate::state::State;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let slot = call.fields().need::<Slot>("slot")?;
    let state = State::read(slot)?;
    let mut status = json!({"exists": state.exists(), "complete": state.complete()});
    if let Some(owner) = &state.owner {
        status["owner"] = owner.to_json();
    }
    if let Some(link) = &state.link {
        status["up"] = link.up.into();
        status["rx_bytes"] = link.stats.rx_bytes.into();
        status["tx_bytes"] = link.stats.tx_bytes.into();
        status["rx_packets"] = link.stats.rx_packets.into();
        status["tx_packets"] = link.stats.tx_packets.into();
    }
    call.document.set("net.status", status);
    Ok(Reply::Document)
}
