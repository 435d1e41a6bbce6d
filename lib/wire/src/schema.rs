//! `schema`: JSON Schema of a verb's request and reply, made from the table of verbs.

use serde_json::{Map, Value, json};

use crate::tool::{Field, Tool, Type, Verb};

pub(crate) fn tool(tool: &Tool) -> Value {
    let verbs: Map<String, Value> = tool.verbs.iter().map(|v| (v.name.to_owned(), verb(tool, v))).collect();
    json!({"tool": tool.name, "version": env!("CARGO_PKG_VERSION"), "verbs": verbs})
}

impl Tool {
    /// JSON Schema of a verb's `request` and `reply`.
    pub fn schema(&self, of: &Verb) -> Value {
        verb(self, of)
    }
}

pub(crate) fn verb(tool: &Tool, verb: &Verb) -> Value {
    let title = format!("{} {}", tool.name, verb.name);
    let request = object(&format!("{title}: request"), verb.about, verb.fields);
    let mut reply =
        object(&format!("{title}: reply"), "The request, with these fields added or changed.", verb.reply);
    reply["properties"]["error"] = error();
    json!({"request": request, "reply": reply})
}

fn object(title: &str, about: &str, fields: &[Field]) -> Value {
    let mut root = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": about,
        "type": "object",
        "properties": {},
        "additionalProperties": true,
    });
    for field in fields {
        insert(&mut root, field);
    }
    root
}

/// Puts a field at its dotted path, making the objects on the way. A required field is required of the object it is
/// directly in, and that object of its parent, except that a section is never required: its fields may also be given at
/// the top level.
fn insert(root: &mut Value, field: &Field) {
    let mut at = root;
    let parts: Vec<_> = field.name.split('.').collect();
    for part in &parts[..parts.len() - 1] {
        let properties = &mut at["properties"];
        if properties.get(part).is_none() {
            properties[*part] = json!({"type": "object", "properties": {}, "additionalProperties": true});
        } else if properties[*part].get("properties").is_none() {
            properties[*part]["properties"] = json!({});
        }
        at = &mut at["properties"][*part];
    }
    let last = parts[parts.len() - 1];
    let mut schema = type_schema(field.kind);
    schema["description"] = field.about.into();
    at["properties"][last] = schema;
    if field.required {
        match at.get_mut("required").and_then(Value::as_array_mut) {
            Some(required) => required.push(last.into()),
            None => at["required"] = json!([last]),
        }
    }
}

fn type_schema(kind: Type) -> Value {
    match kind {
        Type::String => json!({"type": "string"}),
        Type::Path => json!({"type": "string", "minLength": 1}),
        Type::Id => json!({"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,40}$"}),
        Type::Integer => json!({"type": "integer", "minimum": 0}),
        Type::Number => json!({"type": "number"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::OneOf(words) => json!({"type": "string", "enum": words}),
        Type::Strings => json!({"type": "array", "items": {"type": "string"}}),
        Type::Environment => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Type::Array => json!({"type": "array"}),
        Type::Object => json!({"type": "object"}),
        Type::Any => json!({}),
    }
}

fn error() -> Value {
    json!({
        "type": "object",
        "description": "There only when the verb failed; the host is then as it was.",
        "properties": {
            "tool": {"type": "string"},
            "verb": {"type": "string"},
            "kind": {"enum": ["internal", "invalid", "not_found", "conflict", "unsupported", "exhausted", "timeout", "peer", "corrupt"]},
            "code": {"type": "string"},
            "message": {"type": "string"},
            "detail": {"type": "array", "items": {"type": "string"}},
            "errno": {"type": "integer"},
            "retry": {"type": "boolean"},
        },
        "required": ["tool", "verb", "kind", "code", "message", "detail", "retry"],
    })
}
