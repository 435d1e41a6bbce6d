//! Fields of a request by name and type.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::document::{Document, type_name};
use crate::{Error, Id};

/// A type that a field of a request can have.
pub trait FromField: Sized {
    /// What to call it when the field is something else.
    const WANTED: &'static str;
    /// The value as this type, `None` if it is something else.
    fn from_field(value: &Value) -> Option<Self>;
}

pub(crate) fn typed<T: FromField>(name: &str, value: &Value) -> Result<T, Error> {
    T::from_field(value).ok_or_else(|| {
        let shown = match value {
            Value::Array(_) | Value::Object(_) => type_name(value).to_owned(),
            scalar => scalar.to_string(),
        };
        Error::field(name, format!("must be {}, not {shown}", T::WANTED))
    })
}

/// A request's fields as one tool sees them: those of its section first, then those of the top level.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    document: &'a Document,
    section: &'a str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(document: &'a Document, section: &'a str) -> Self {
        Self { document, section }
    }

    /// The field's value and the full path it was found under. A null counts as absent.
    pub fn value(&self, name: &str) -> Option<(String, &'a Value)> {
        let own = format!("{}.{name}", self.section);
        match self.document.get(&own) {
            Some(value) => Some((own, value)),
            None => self.document.get(name).map(|value| (name.to_owned(), value)),
        }
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// `invalid` naming the field when it is absent or of another type.
    pub fn need<T: FromField>(&self, name: &str) -> Result<T, Error> {
        self.find(name)?.ok_or_else(|| {
            Error::field(
                name,
                format!("missing (looked in {}.{name} and {name}); wants {}", self.section, T::WANTED),
            )
        })
    }

    /// A field that may be absent.
    ///
    /// # Errors
    /// `invalid` naming the field when it is of another type.
    pub fn find<T: FromField>(&self, name: &str) -> Result<Option<T>, Error> {
        self.value(name).map(|(path, value)| typed(&path, value)).transpose()
    }
}

impl FromField for String {
    const WANTED: &'static str = "a string";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

/// A path is made absolute when it is read, so that it still means the same in another program.
impl FromField for PathBuf {
    const WANTED: &'static str = "a path: a string that is not empty and holds no NUL";
    fn from_field(value: &Value) -> Option<Self> {
        let text = value.as_str().filter(|text| !text.is_empty() && !text.contains('\0'))?;
        std::path::absolute(text).ok()
    }
}

macro_rules! unsigned {
    ($($type:ty),*) => {$(
        impl FromField for $type {
            const WANTED: &'static str = concat!("a whole number from 0 that fits ", stringify!($type));
            fn from_field(value: &Value) -> Option<Self> {
                value.as_u64()?.try_into().ok()
            }
        }
    )*};
}
unsigned!(u8, u16, u32, u64);

impl FromField for i32 {
    const WANTED: &'static str = "a whole number that fits i32";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_i64()?.try_into().ok()
    }
}

impl FromField for f64 {
    const WANTED: &'static str = "a number";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_f64().filter(|number| number.is_finite())
    }
}

impl FromField for bool {
    const WANTED: &'static str = "true or false";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromField for Map<String, Value> {
    const WANTED: &'static str = "an object";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_object().cloned()
    }
}

impl FromField for Value {
    const WANTED: &'static str = "a value";
    fn from_field(value: &Value) -> Option<Self> {
        Some(value.clone())
    }
}

impl FromField for Vec<Value> {
    const WANTED: &'static str = "an array";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_array().cloned()
    }
}

impl FromField for Vec<String> {
    const WANTED: &'static str = "an array of strings";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(String::from_field).collect()
    }
}

impl FromField for Vec<Id> {
    const WANTED: &'static str = "an array of ids: [a-z0-9][a-z0-9-]{0,40}";
    fn from_field(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(Id::from_field).collect()
    }
}

/// An object whose values are strings, such as an environment.
impl FromField for Vec<(String, String)> {
    const WANTED: &'static str = "an object of strings";
    fn from_field(value: &Value) -> Option<Self> {
        value
            .as_object()?
            .iter()
            .map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_section_wins_over_the_top_level() {
        let document = Document::from_value(json!({"slot": 1, "size": 2, "net": {"slot": 7}})).unwrap();
        let fields = document.fields("net");
        assert_eq!(fields.need::<u16>("slot").unwrap(), 7);
        assert_eq!(fields.need::<u16>("size").unwrap(), 2);
        assert_eq!(fields.find::<u16>("none").unwrap(), None);
    }

    #[test]
    fn a_wrong_field_is_named_with_what_it_is() {
        let document =
            Document::from_value(json!({"net": {"slot": "seven"}, "big": 70000, "half": 0.5})).unwrap();
        let fields = document.fields("net");
        let message = |error: Error| error.message;
        assert_eq!(
            message(fields.need::<u16>("slot").unwrap_err()),
            "net.slot: must be a whole number from 0 that fits u16, not \"seven\""
        );
        assert!(message(fields.need::<u16>("big").unwrap_err()).starts_with("big: must be"));
        assert!(message(fields.need::<u64>("half").unwrap_err()).starts_with("half: must be"));
        assert!(message(fields.need::<u64>("gone").unwrap_err()).starts_with("gone: missing"));
    }
}
