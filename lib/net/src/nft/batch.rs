//! A batch of nftables messages.

use super::attributes::Attributes;
use super::expression::Expression;
use crate::Error;
use crate::netlink::Request;
use crate::netlink::socket::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Socket};

// linux/netfilter/nfnetlink.h, nf_tables.h
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const ACCEPT: u32 = 1;

/// The one table's name, on the host and in every slot.
pub(crate) const TABLE: &str = "wrenn";

/// Where a chain hangs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// NF_INET_PRE_ROUTING 0, FORWARD 2, POST_ROUTING 4.
    pub number: u32,
    /// dstnat −100, filter 0, srcnat 100.
    pub priority: i32,
}

/// Messages that take effect together.
pub(crate) struct Batch(Vec<Request>);

impl Batch {
    /// An empty one.
    pub fn new() -> Self {
        Self(vec![Request {
            what: "change nftables".into(),
            kind: BATCH_BEGIN,
            flags: 0,
            body: body(AF_UNSPEC, SUBSYSTEM, Attributes::default()),
        }])
    }

    /// Makes the table; the whole batch fails if it exists.
    #[must_use]
    pub fn table(mut self) -> Self {
        let attributes = Attributes::default().text(1, TABLE).number(2, 0);
        self.push("make table", NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, attributes);
        self
    }

    /// Removes the table with all that is in it; the whole batch fails if there is none.
    #[must_use]
    pub fn remove_table(mut self) -> Self {
        self.push("remove table", DELTABLE, 0, Attributes::default().text(1, TABLE));
        self
    }

    /// Makes a chain that accepts what no rule decides.
    #[must_use]
    pub fn chain(mut self, name: &str, hook: Hook) -> Self {
        let place = Attributes::default().number(1, hook.number).number(2, hook.priority.cast_unsigned());
        let attributes = Attributes::default()
            .text(1, TABLE)
            .text(3, name)
            .text(7, hook.kind)
            .number(5, ACCEPT)
            .nest(4, place);
        self.push(&format!("make chain {name} of table"), NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, attributes);
        self
    }

    /// Appends a rule to a chain.
    #[must_use]
    pub fn rule(mut self, chain: &str, expressions: impl IntoIterator<Item = Expression>) -> Self {
        let element = 1;
        let expressions = expressions
            .into_iter()
            .fold(Attributes::default(), |list, expression| list.nest(element, expression.encode()));
        let attributes = Attributes::default().text(1, TABLE).text(2, chain).nest(4, expressions);
        let what = format!("add a rule to chain {chain} of table");
        self.push(&what, NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attributes);
        self
    }

    /// Puts it into effect.
    pub fn send(self, socket: &mut Socket) -> Result<(), Error> {
        socket.send(&self.end()).map_err(meaning)
    }

    fn end(mut self) -> Vec<Request> {
        self.0.push(Request {
            what: "change nftables".into(),
            kind: BATCH_END,
            flags: 0,
            body: body(AF_UNSPEC, SUBSYSTEM, Attributes::default()),
        });
        self.0
    }

    fn push(&mut self, what: &str, kind: u16, flags: u16, attributes: Attributes) {
        self.0.push(message(what, kind, flags | NLM_F_ACK, attributes));
    }
}

/// Whether the table exists.
pub(crate) fn has_table(socket: &mut Socket) -> Result<bool, Error> {
    match socket.ask(message("look for table", GETTABLE, 0, Attributes::default().text(1, TABLE))) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(nix::libc::ENOENT) => Ok(false),
        Err(error) => Err(meaning(error)),
    }
}

fn message(what: &str, kind: u16, flags: u16, attributes: Attributes) -> Request {
    Request {
        what: format!("{what} ip {TABLE} in nftables"),
        kind: SUBSYSTEM << 8 | kind,
        flags,
        body: body(AF_INET, 0, attributes),
    }
}

/// struct nfgenmsg: family, version 0, big-endian resource id; then attributes.
fn body(family: u8, resource: u16, attributes: Attributes) -> Vec<u8> {
    let mut bytes = vec![family, 0];
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes.into_bytes());
    bytes
}

/// What a kernel without a part of nftables answers: no subsystem, no such chain type, no such expression.
fn meaning(error: Error) -> Error {
    match error {
        Error::Refused { what, source, .. }
            if matches!(source.raw_os_error(), Some(nix::libc::EOPNOTSUPP | nix::libc::ENOENT)) =>
        {
            Error::NoNftables { what, source }
        }
        other => other,
    }
}

#[cfg(test)]
impl Batch {
    /// The bodies of its messages, for comparison with those of `nft`.
    pub fn bodies(self) -> Vec<Vec<u8>> {
        self.end().into_iter().map(|request| request.body).collect()
    }
}
