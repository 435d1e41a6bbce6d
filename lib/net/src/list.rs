//! `wrenn-net list`: this root's slots, as the kernel knows them.

use wire::{Call, Reply, Value, json};

use crate::state::State;

pub(crate) fn run(call: &mut Call) -> Result<Reply, wire::Error> {
    let tag = call.host.tag();
    let slots: Vec<Value> = State::all()?.iter().filter_map(|state| entry(state, &tag)).collect();
    call.document.set("slots", slots);
    Ok(Reply::Document)
}

fn entry(state: &State, tag: &str) -> Option<Value> {
    let owner = state.owner.as_ref().filter(|owner| owner.tag() == tag)?;
    Some(json!({
        "slot": state.slot.number(),
        "netns": state.slot.netns(),
        "veth": state.slot.veth(),
        "host_ip": state.slot.host_ip().to_string(),
        "owner": owner.to_json(),
        "complete": state.complete(),
    }))
}
