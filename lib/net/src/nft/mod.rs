//! nftables over netlink: just the messages and expressions that the two rule sets need.
//!
//! Formats: linux/netfilter/nf_tables.h and linux/netfilter/nfnetlink.h. A batch takes effect as a whole or not at all.

mod attributes;
mod batch;
mod expression;
mod rules;

pub(crate) use rules::{has_host_table, host_table, remove_host_table, slot_table};
