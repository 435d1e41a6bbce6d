//! Whose a slot is, as its file and its interfaces say.

use std::fmt;

use wire::{Id, Value, json};

/// A root and one of its sandboxes: `wrenn:<tag>:<id>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    tag: String,
    id: Id,
}

impl Owner {
    /// A sandbox of the root with this tag.
    pub fn new(tag: impl Into<String>, id: Id) -> Self {
        Self { tag: tag.into(), id }
    }

    /// The owner that this text names. `None` when it is not one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let (tag, id) = text.strip_prefix("wrenn:")?.split_once(':')?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (tag.len() == 12 && tag.bytes().all(hex)).then_some(())?;
        Some(Self::new(tag, Id::new(id).ok()?))
    }

    /// The root's tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The sandbox.
    pub fn id(&self) -> &Id {
        &self.id
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"tag": self.tag, "id": self.id.as_str()})
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrenn:{}:{}", self.tag, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_reads_back_as_written_and_nothing_else_is_one() {
        let owner = Owner::new("0123456789ab", Id::new("sb-1").unwrap());
        assert_eq!(owner.to_string(), "wrenn:0123456789ab:sb-1");
        assert_eq!(Owner::parse(&owner.to_string()), Some(owner));
        for text in [
            "",
            "wrenn:",
            "wrenn:0123456789ab:",
            "wrenn:0123456789AB:x",
            "wrenn:1:x",
            "docker:0123456789ab:x",
        ] {
            assert_eq!(Owner::parse(text), None, "{text}");
        }
    }
}
