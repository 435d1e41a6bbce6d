//! `wrenn serve` as a client sees it.

mod client;
mod clients;
mod described;
mod events;
mod exec;
mod refusals;
mod server;
mod socket;
