//! A sandbox's document: a JSON object of which each tool knows its own part.

use serde_json::{Map, Value};
use sys::process::Process;

use crate::fields::Fields;
use crate::{Error, FromField, Id};

/// One JSON object. Fields keep their order and numbers their digits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Document(Map<String, Value>);

impl Document {
    /// An empty document.
    pub fn new() -> Self {
        Self::default()
    }

    /// The document that this value is.
    ///
    /// # Errors
    /// `invalid` when it is not an object.
    pub fn from_value(value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            other => Err(Error::new(
                crate::Kind::Invalid,
                "wire.not_an_object",
                format!("a request is a JSON object, not {}", type_name(&other)),
            )),
        }
    }

    /// The document that this text is.
    ///
    /// # Errors
    /// `invalid` when it is not JSON, or not an object.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let value = crate::exact::parse(text).map_err(|error| {
            Error::new(crate::Kind::Invalid, "wire.not_json", format!("the request is not JSON: {error}"))
        })?;
        Self::from_value(value)
    }

    /// The value at a dotted path. A null counts as absent.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut parts = path.split('.');
        let first = self.0.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part)).filter(|value| !value.is_null())
    }

    /// Puts a value at a dotted path, making the objects on the way. What is there and is not an object is replaced.
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        let mut map = &mut self.0;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                map.insert(part.to_owned(), value.into());
                return;
            }
            let next = map.entry(part).or_insert_with(|| Map::new().into());
            if !next.is_object() {
                *next = Map::new().into();
            }
            map = match next {
                Value::Object(map) => map,
                _ => unreachable!("made an object above"),
            };
        }
    }

    /// Takes the value at a dotted path out, leaving the order of the others.
    pub fn remove(&mut self, path: &str) -> Option<Value> {
        match path.rsplit_once('.') {
            None => self.0.shift_remove(path),
            Some((parents, last)) => {
                let mut parts = parents.split('.');
                let first = self.0.get_mut(parts.next()?)?;
                parts.try_fold(first, |value, part| value.get_mut(part))?.as_object_mut()?.shift_remove(last)
            }
        }
    }

    /// The fields as a tool sees them: those of its own section first, then those of the top level.
    pub fn fields<'a>(&'a self, section: &'a str) -> Fields<'a> {
        Fields::new(self, section)
    }

    /// A value at a dotted path, by its type.
    ///
    /// # Errors
    /// `invalid` naming the path when it is absent or of another type.
    pub fn need<T: FromField>(&self, path: &str) -> Result<T, Error> {
        self.find(path)?.ok_or_else(|| Error::field(path, format!("missing; wants {}", T::WANTED)))
    }

    /// As [`Document::need`], `None` when it is absent.
    ///
    /// # Errors
    /// `invalid` naming the path when it is of another type.
    pub fn find<T: FromField>(&self, path: &str) -> Result<Option<T>, Error> {
        self.get(path).map(|value| crate::fields::typed(path, value)).transpose()
    }

    /// The process that a tool's section names by `pid`, `start_time` and `boot_id`. Whether it lives is not looked at.
    ///
    /// # Errors
    /// `invalid` naming the field when one is absent or of another type.
    pub fn process(&self, section: &str) -> Result<Process, Error> {
        let fields = self.fields(section);
        Ok(Process {
            pid: fields.need("pid")?,
            start_time: fields.need("start_time")?,
            boot_id: fields.need("boot_id")?,
        })
    }

    /// The sandbox's id, if the document has one.
    ///
    /// # Errors
    /// `invalid` when it is not of the form an id has.
    pub fn id(&self) -> Result<Option<Id>, Error> {
        match self.get("id") {
            None => Ok(None),
            Some(Value::String(text)) => Id::new(text).map(Some),
            Some(other) => Err(Error::field("id", format!("must be a string, not {}", type_name(other)))),
        }
    }

    /// The object itself.
    pub fn map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The object itself, to change.
    pub fn map_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// The document as a JSON value.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

impl From<Map<String, Value>> for Document {
    fn from(map: Map<String, Value>) -> Self {
        Self(map)
    }
}

/// What JSON calls a value of this type, with its article.
pub(crate) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::from_value(crate::exact::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn what_nobody_touches_comes_out_as_it_went_in() {
        let text = r#"{"z":1e2,"a":18446744073709551616,"m":{"y":0.10,"b":null},"c":-0}"#;
        let mut document = document(text);
        document.set("m.new", 1);
        assert_eq!(document.remove("m.new"), Some(1.into()));
        document.set("extra", true);
        document.remove("extra");
        assert_eq!(serde_json::to_string(&document.into_value()).unwrap(), text);
    }

    #[test]
    fn removing_a_field_keeps_the_order_of_the_others() {
        let mut document = document(r#"{"a":1,"b":2,"c":3,"d":{"x":1,"y":2,"z":3}}"#);
        document.remove("a");
        document.remove("d.x");
        assert_eq!(
            serde_json::to_string(&document.into_value()).unwrap(),
            r#"{"b":2,"c":3,"d":{"y":2,"z":3}}"#
        );
    }

    #[test]
    fn a_process_is_named_by_three_fields_and_each_that_is_missing_is_named() {
        let whole =
            document(r#"{"vm":{"pid":7,"start_time":5,"boot_id":"b"},"uffd":{"pid":8,"start_time":6}}"#);
        let process = whole.process("vm").unwrap();
        assert_eq!((process.pid, process.start_time, process.boot_id.as_str()), (7, 5, "b"));
        assert!(whole.process("uffd").unwrap_err().message.contains("uffd.boot_id"));
        assert!(whole.process("net").unwrap_err().message.contains("net.pid"));
    }

    #[test]
    fn a_null_counts_as_absent() {
        let document = document(r#"{"a":null,"b":{"c":null}}"#);
        assert_eq!(document.get("a"), None);
        assert_eq!(document.get("b.c"), None);
    }
}
