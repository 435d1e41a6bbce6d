//! Names that become paths and device names, checked before use.

use std::fmt;

use crate::{Error, FromField};
use serde_json::Value;

/// A sandbox's id: `[a-z0-9][a-z0-9-]{0,40}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

/// A template's name: `[team/]name`, each part written like an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateName(String);

const RULE: &str = "must match [a-z0-9][a-z0-9-]{0,40}";

fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=41).contains(&bytes.len())
        && letter(bytes[0])
        && bytes.iter().all(|&byte| letter(byte) || byte == b'-')
}

impl Id {
    /// Checks the text.
    ///
    /// # Errors
    /// `invalid` naming `id`.
    pub fn new(text: &str) -> Result<Self, Error> {
        if is_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::field("id", format!("{RULE}, not {text:?}")))
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TemplateName {
    /// Checks the text.
    ///
    /// # Errors
    /// `invalid` naming `template`.
    pub fn new(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('/');
        let good = parts.by_ref().take(2).all(is_name) && parts.next().is_none();
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::field("template", format!("must be [team/]name, each of which {RULE}, not {text:?}")))
        }
    }

    /// The name as text, which is also its path below `images/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromField for Id {
    const WANTED: &'static str = "an id: [a-z0-9][a-z0-9-]{0,40}";
    fn from_field(value: &Value) -> Option<Self> {
        Self::new(value.as_str()?).ok()
    }
}

impl FromField for TemplateName {
    const WANTED: &'static str = "a template name: [team/]name of a-z, 0-9 and -";
    fn from_field(value: &Value) -> Option<Self> {
        Self::new(value.as_str()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_leave_its_directory_or_break_a_device_name_is_refused() {
        for good in ["a", "0", "sb-1f2e3d4c", &"x".repeat(41)] {
            assert!(Id::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a/b", "..", "a.b", "a b", "é", &"x".repeat(42)] {
            assert!(Id::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_template_name_has_at_most_one_team() {
        for good in ["minimal", "team/minimal"] {
            assert!(TemplateName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a//b", "a/b/c", "a/../b", "."] {
            assert!(TemplateName::new(bad).is_err(), "{bad}");
        }
    }
}
