//! The command line: flags, `-`, assignments and bare words, in any order.
//!
//! Written by hand because the verbs are a table: see docs/decisions/002.md.

use std::time::Duration;

use log::LevelFilter;
use serde_json::Value;

use crate::tool::{Field, Input, Options, Tool, Type, Verb};
use crate::{Document, Error};

/// A command line, understood.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub options: Options,
    pub pretty: bool,
    pub help: bool,
    pub log: Option<LevelFilter>,
    pub log_json: bool,
    /// `-`: read stdin, and apply the assignments on top.
    pub stdin: bool,
    /// In the order given.
    pub assignments: Vec<(String, Value)>,
}

impl Arguments {
    /// Understands what follows the verb.
    pub(crate) fn parse(tool: &Tool, verb: &Verb, words: &[String]) -> Result<Self, Error> {
        let mut parsed = Self::default();
        let mut operands = verb.operands.iter();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "--" {
                let Some(field) = verb.rest else {
                    return Err(Error::usage(format!("{} {}: nothing may follow --", tool.name, verb.name)));
                };
                parsed.assign(field, words.by_ref().cloned().collect::<Vec<_>>().into());
            } else if word == "-" {
                parsed.stdin = true;
            } else if word == "-h" {
                parsed.help = true;
            } else if let Some(flag) = word.strip_prefix("--") {
                parsed.flag(verb, flag, &mut words)?;
            } else if let Some((path, value)) = assignment(word)? {
                parsed.assign(&path, value);
            } else if word.starts_with('-') {
                return Err(Error::usage(format!(
                    "unknown flag {word}; see {} {} --help",
                    tool.name, verb.name
                )));
            } else if let Some(field) = operands.next() {
                parsed.assign(field, word.clone().into());
            } else {
                let hint =
                    format!("wants path=value, path:=json or -; see {} {} --help", tool.name, verb.name);
                return Err(Error::usage(format!("what is {word:?}? {hint}")));
            }
        }
        Ok(parsed)
    }

    fn assign(&mut self, path: &str, value: Value) {
        self.assignments.push((path.to_owned(), value));
    }

    fn flag<'a>(
        &mut self,
        verb: &Verb,
        flag: &str,
        words: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), Error> {
        let (name, mut given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let simple = match name {
            "pretty" => Some(&mut self.pretty),
            "undo" => Some(&mut self.options.undo),
            "help" => Some(&mut self.help),
            _ => None,
        };
        if let Some(switch) = simple {
            *switch = true;
            return given.map_or(Ok(()), |_| Err(Error::usage(format!("--{name} takes no value"))));
        }
        let bare = given.is_none();
        let mut value = || {
            given
                .take()
                .or_else(|| words.next().cloned())
                .ok_or_else(|| Error::usage(format!("--{name} needs a value")))
        };
        match name {
            "wait" => {
                let text = value()?;
                let seconds =
                    text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                self.options.wait =
                    seconds.ok_or_else(|| Error::usage(format!("--wait takes seconds, not {text:?}")))?;
            }
            "log" => {
                let text = value()?;
                let level =
                    ["error", "warn", "info", "debug"].contains(&text.as_str()).then(|| text.parse().ok());
                self.log = level.flatten();
                if self.log.is_none() {
                    return Err(Error::usage(format!(
                        "--log takes error, warn, info or debug, not {text:?}"
                    )));
                }
            }
            "log-format" => match value()?.as_str() {
                "text" => self.log_json = false,
                "json" => self.log_json = true,
                other => return Err(Error::usage(format!("--log-format takes text or json, not {other:?}"))),
            },
            _ => {
                let Some(field) = verb.fields.iter().find(|field| field.flag == Some(name)) else {
                    return Err(Error::usage(format!("unknown flag --{name}")));
                };
                if field.kind == Type::Bool && bare {
                    self.assign(field.name, true.into());
                } else {
                    let value = value()?;
                    let (path, value) = field.parse(&format!("--{name}"), &value)?;
                    self.assign(&path, value);
                }
            }
        }
        Ok(())
    }

    /// Whether the request comes from stdin.
    pub(crate) fn reads_stdin(&self, verb: &Verb) -> bool {
        self.stdin || (self.assignments.is_empty() && verb.input == Input::Requests)
    }

    /// Applies the assignments on top of a request.
    pub(crate) fn apply(&self, document: &mut Document) {
        for (path, value) in &self.assignments {
            document.set(path, value.clone());
        }
    }
}

/// `path=value` or `path:=json`; `None` when the word is neither.
fn assignment(word: &str) -> Result<Option<(String, Value)>, Error> {
    let Some((left, text)) = word.split_once('=') else { return Ok(None) };
    let (path, json) = match left.strip_suffix(':') {
        Some(path) => (path, true),
        None => (left, false),
    };
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if path.is_empty() || !path.chars().all(letter) || path.split('.').any(str::is_empty) {
        return Err(Error::usage(format!("{word:?}: {path:?} is not a field's path")));
    }
    let value = if json {
        crate::exact::parse(text).map_err(|error| Error::usage(format!("{path}: not JSON: {error}")))?
    } else {
        text.into()
    };
    Ok(Some((path.to_owned(), value)))
}

impl Field {
    /// The path and the value that a text means for this field, as after its flag. `called` is what the text was given as,
    /// for the error.
    ///
    /// # Errors
    /// `invalid` when the text is none of its type.
    pub fn parse(&self, called: &str, text: &str) -> Result<(String, Value), Error> {
        let json = |wanted: &str| {
            serde_json::from_str::<Value>(text)
                .map_err(|_| Error::usage(format!("{called} takes {wanted}, not {text:?}")))
        };
        let value = match self.kind {
            Type::Integer => json("a whole number")?,
            Type::Number => json("a number")?,
            Type::Bool => json("true or false")?,
            Type::Environment | Type::Object => {
                let Some((key, value)) =
                    text.split_once('=').filter(|(key, _)| !key.is_empty() && !key.contains('.'))
                else {
                    return Err(Error::usage(format!("{called} takes KEY=VALUE, not {text:?}")));
                };
                return Ok((format!("{}.{key}", self.name), value.into()));
            }
            Type::Array | Type::Strings | Type::Any => json("JSON")?,
            Type::String | Type::Path | Type::Id | Type::OneOf(_) => text.into(),
        };
        Ok((self.name.to_owned(), value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reply;

    static TOOL: Tool = Tool { name: "wrenn-x", about: "", section: "x", short: "x", verbs: &[] };
    static FIELDS: [Field; 3] = [
        Field::may("spec.template", Type::String, "").flag("template"),
        Field::may("metadata", Type::Environment, "").flag("metadata"),
        Field::may("json", Type::Bool, "").flag("json"),
    ];

    fn parse(words: &[&str]) -> Result<Arguments, Error> {
        let verb = Verb {
            fields: &FIELDS,
            operands: &["id"],
            rest: Some("cmd"),
            ..Verb::new("do", "", |_| Ok(Reply::Document))
        };
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        Arguments::parse(&TOOL, &verb, &words)
    }

    fn request(words: &[&str]) -> String {
        let mut document = Document::new();
        parse(words).unwrap().apply(&mut document);
        document.into_value().to_string()
    }

    #[test]
    fn flags_assignments_and_the_dash_come_in_any_order() {
        for words in [["--pretty", "a=1", "-", "--wait", "3"], ["-", "--wait=3", "a=1", "--pretty", "--undo"]]
        {
            let parsed = parse(&words).unwrap();
            assert!(parsed.pretty && parsed.stdin);
            assert_eq!(parsed.options.wait, Duration::from_secs(3));
            assert_eq!(parsed.assignments.len(), 1);
        }
    }

    #[test]
    fn dots_nest_and_colon_equals_takes_json() {
        assert_eq!(
            request(&["spec.memory_mib:=256", "spec.user=root", "a==", "b="]),
            r#"{"spec":{"memory_mib":256,"user":"root"},"a":"=","b":""}"#
        );
        assert_eq!(request(&["x:={\"a\":[1e2]}"]), r#"{"x":{"a":[1e2]}}"#);
    }

    #[test]
    fn operands_fields_with_flags_and_the_rest() {
        assert_eq!(
            request(&[
                "sb-1",
                "--template",
                "minimal",
                "--metadata",
                "a=b",
                "--metadata=c=d",
                "--json",
                "--",
                "ls",
                "-l",
                "--",
                "x=y"
            ]),
            r#"{"id":"sb-1","spec":{"template":"minimal"},"metadata":{"a":"b","c":"d"},"json":true,"cmd":["ls","-l","--","x=y"]}"#
        );
    }

    #[test]
    fn what_cannot_be_understood_is_refused_by_name() {
        for (words, said) in [
            (&["--bogus"][..], "--bogus"),
            (&["-x"], "-x"),
            (&["a", "b"], "\"b\""),
            (&["=1"], "\"=1\""),
            (&["a..b=1"], "a..b"),
            (&["x:={"], "x: not JSON"),
            (&["--wait"], "--wait needs"),
            (&["--wait", "-1"], "--wait takes seconds"),
            (&["--log", "loud"], "--log takes"),
            (&["--pretty=1"], "--pretty takes no value"),
            (&["--metadata", "novalue"], "--metadata takes KEY=VALUE"),
        ] {
            let error = parse(words).unwrap_err();
            assert_eq!(error.kind, crate::Kind::Invalid);
            assert!(error.message.contains(said), "{words:?}: {}", error.message);
        }
    }
}
