//! JSON values whose numbers keep every digit as it was written.
//!
//! Even with `arbitrary_precision`, serde_json's parser writes `1e2` down as `1e+2`. Numbers are therefore taken from the
//! raw text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Error, Map, Number, Value};

/// The nesting that serde_json itself allows.
const DEPTH: usize = 128;

/// Parses one value.
pub(crate) fn parse(text: &str) -> Result<Value, Error> {
    nested(text.trim_matches([' ', '\t', '\n', '\r']), DEPTH)
}

fn nested(text: &str, depth: usize) -> Result<Value, Error> {
    let Some(below) = depth.checked_sub(1) else {
        return Err(Error::custom(format!("nested more than {DEPTH} deep")));
    };
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let mut map = Map::new();
            for (key, raw) in serde_json::from_str::<Pairs>(text)?.0 {
                map.insert(key, nested(raw.get(), below)?);
            }
            Value::Object(map)
        }
        Some(b'[') => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text)?;
            Value::Array(items.iter().map(|raw| nested(raw.get(), below)).collect::<Result<_, _>>()?)
        }
        Some(b'-' | b'0'..=b'9') => {
            let _checked: &RawValue = serde_json::from_str(text)?;
            Value::Number(Number::from_string_unchecked(text.to_owned()))
        }
        _ => serde_json::from_str(text)?,
    })
}

/// An object's members in order, their values not yet parsed.
struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_every_digit() {
        let text = r#"{"a":[1e2,1E2,1e+2,1E-02,-0,-0.0,0.10,18446744073709551616,123456789012345678901234567890.5],"b":{"c":1e2}}"#;
        assert_eq!(parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for bad in ["01", "1.", "-", "1e", "+1", "{\"a\":01}", "[1,]", "{\"a\" 1}", "nul", "", "[1", "1 2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(parse(&deep).is_err());
        let fits = format!("{}{}", "[".repeat(127), "]".repeat(127));
        assert!(parse(&fits).is_ok());
    }
}
