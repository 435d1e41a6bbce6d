//! `--help`, made from the table of verbs.

use std::fmt::Write;

use crate::tool::{Field, Input, Tool, Type, Verb};

/// The flags that every verb takes.
pub(crate) const FLAGS: &[(&str, &str)] = &[
    ("--pretty", "indent the reply"),
    ("--undo", "work on a document that carries an error too, and keep the error"),
    ("--wait SECONDS", "how long to wait for the sandbox's lock (default 10)"),
    ("--log LEVEL", "error, warn, info or debug, on stderr (default warn)"),
    ("--log-format FORMAT", "text or json (default text)"),
    ("--help", "this text"),
];

/// Verbs that every program has.
pub(crate) const COMMON: &[(&str, &str)] = &[
    ("schema [VERB]", "JSON Schema of requests and replies"),
    ("completions SHELL", "completions for bash, zsh or fish"),
    ("version", "name and version"),
    ("help [VERB]", "this text, or a verb's"),
];

pub(crate) fn type_text(kind: Type) -> String {
    match kind {
        Type::String => "string".into(),
        Type::Path => "path".into(),
        Type::Id => "id".into(),
        Type::Integer => "integer".into(),
        Type::Number => "number".into(),
        Type::Bool => "true|false".into(),
        Type::OneOf(words) => words.join("|"),
        Type::Strings => "[string]".into(),
        Type::Environment => "{name: string}".into(),
        Type::Array => "array".into(),
        Type::Object => "object".into(),
        Type::Any => "any".into(),
    }
}

pub(crate) fn tool(tool: &Tool) -> String {
    let mut text = format!("{}: {}\n\n", tool.name, tool.about);
    let _ = writeln!(text, "Usage: {} VERB [path=value | path:=json | -]… [flags]\n\nVerbs:", tool.name);
    for verb in tool.verbs {
        let _ = writeln!(text, "  {:<18} {}", verb.name, verb.about);
    }
    for (name, about) in COMMON {
        let _ = writeln!(text, "  {name:<18} {about}");
    }
    text.push_str(
        "\nRequests are JSON objects on stdin, or one made of the arguments; the reply is one line of JSON for each.\n\n",
    );
    flags(&mut text);
    text.push_str(
        "\nExit status: 0 all succeeded, 1 internal, 2 invalid, 3 not_found, 4 conflict, 5 unsupported,\n\
         6 exhausted, 7 timeout, 8 peer, 9 corrupt.\n\
         Environment: WRENN_ROOT (default /var/lib/wrenn), WRENN_RUN (default /run/wrenn).\n",
    );
    text
}

pub(crate) fn verb(tool: &Tool, verb: &Verb) -> String {
    let mut text =
        format!("{} {}: {}\n\nUsage: {} {}", tool.name, verb.name, verb.about, tool.name, verb.name);
    for operand in verb.operands {
        let _ = write!(text, " [{}]", operand.rsplit('.').next().unwrap_or(operand).to_uppercase());
    }
    text.push_str(" [path=value | path:=json | -]… [flags]");
    if let Some(rest) = verb.rest {
        let _ = write!(text, " [-- {}…]", rest.to_uppercase());
    }
    text.push('\n');
    match verb.input {
        Input::Requests => text.push_str("Without arguments, requests are read from stdin.\n"),
        Input::None => text.push_str("Stdin is read only when told -.\n"),
    }
    fields(&mut text, "Request", verb.fields);
    fields(&mut text, "Reply, besides the request", verb.reply);
    text.push('\n');
    flags(&mut text);
    if !verb.example.is_empty() {
        let _ = writeln!(text, "\nExample:\n  {}", verb.example);
    }
    text
}

fn fields(text: &mut String, title: &str, fields: &[Field]) {
    if fields.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}:");
    for field in fields {
        let need = if field.required { ", required" } else { "" };
        let flag = field.flag.map(|flag| format!(" (--{flag})")).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {}  <{}{need}>{flag}\n      {}",
            field.name,
            type_text(field.kind),
            field.about
        );
    }
}

fn flags(text: &mut String) {
    text.push_str("Flags:\n");
    for (flag, about) in FLAGS {
        let _ = writeln!(text, "  {flag:<20} {about}");
    }
}
