//! The OpenAPI document, made from the table of routes and the verbs' tables of fields.

use http::StatusCode;
use wire::{Map, Type, Value, Verb, json};

use super::reply::{JSON, NDJSON};
use super::request::{self, BODY_BYTES};
use super::routes::{Answer, ROUTES, Route};
use crate::TOOL;

/// What any verb can answer besides success (docs/serve.md).
const ERRORS: [StatusCode; 8] = [
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_FOUND,
    StatusCode::CONFLICT,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::NOT_IMPLEMENTED,
    StatusCode::BAD_GATEWAY,
    StatusCode::GATEWAY_TIMEOUT,
    StatusCode::INSUFFICIENT_STORAGE,
];

/// The description of all routes.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.to_lowercase()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "wrenn",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The verbs of wrenn as HTTP and JSON on a Unix socket. A field that is not known is passed on.",
        },
        "servers": [{"url": "http://localhost", "description": "the Unix socket of `wrenn serve`"}],
        "paths": paths,
        "components": {
            "schemas": {"Error": error(), "Event": event()},
            "responses": {"Error": {
                "description": "The request, if it was understood, with what went wrong. The host is as it was.",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
            }},
        },
    })
}

fn operation(route: &Route) -> Value {
    let verb = TOOL.verbs.iter().find(|verb| verb.name == route.verb);
    let mut operation = json!({"operationId": route.operation, "summary": route.about});
    let parameters = parameters(route, verb);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = body(route, verb) {
        operation["requestBody"] = body;
    }
    operation["responses"] = responses(route, verb);
    operation
}

fn parameters(route: &Route, verb: Option<&Verb>) -> Vec<Value> {
    let mut all = Vec::new();
    let mut add = |name: &str, place: &str, about: &str, schema: Value| {
        let required = place == "path" || name == "path";
        all.push(
            json!({"name": name, "in": place, "required": required, "description": about, "schema": schema}),
        );
    };
    if route.path.contains("{id}") {
        add("id", "path", "the sandbox", json!({"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,40}$"}));
    }
    if route.path.contains("{name}") {
        add(
            "name",
            "path",
            "[team/]name of the template; the slash as %2F or as it is",
            json!({"type": "string"}),
        );
    }
    if matches!(route.answer, Answer::Download | Answer::Upload) {
        add("path", "query", "the file in the sandbox", json!({"type": "string", "minLength": 1}));
        add("user", "query", "whom to act as in the guest (default: spec.user)", json!({"type": "string"}));
    }
    let Some(verb) = verb else { return all };
    for field in request::flags(route, verb) {
        let schema = match field.kind {
            Type::Environment | Type::Object => {
                json!({"type": "array", "items": {"type": "string", "pattern": "^[^.=]+="}})
            }
            _ => at(&TOOL.schema(verb)["request"], field.name),
        };
        add(field.flag.unwrap_or_default(), "query", field.about, schema);
    }
    let about = "seconds to wait for another operation on the sandbox";
    add("wait", "query", about, json!({"type": "number", "minimum": 0, "default": 10}));
    all
}

/// The schema of the field at a dotted path, less its description.
fn at(schema: &Value, path: &str) -> Value {
    let mut found = path.split('.').fold(schema, |schema, part| &schema["properties"][part]).clone();
    if let Some(found) = found.as_object_mut() {
        found.shift_remove("description");
    }
    found
}

fn body(route: &Route, verb: Option<&Verb>) -> Option<Value> {
    if route.answer == Answer::Upload {
        let about = "the file's content, of any length";
        return Some(
            json!({"required": true, "description": about, "content": {"application/octet-stream": {}}}),
        );
    }
    let verb = verb.filter(|_| route.method == "POST")?;
    let mut schema = plain(TOOL.schema(verb)["request"].clone());
    let in_path = ["id", "name"].into_iter().filter(|name| route.path.contains(&format!("{{{name}}}")));
    let fixed = route.fixed.iter().map(|(name, _)| *name);
    for name in in_path.chain(fixed).chain(route.hidden.iter().copied()) {
        forget(&mut schema, name);
    }
    let required = schema.get("required").is_some();
    let about = format!("at most {BODY_BYTES} bytes");
    Some(json!({"required": required, "description": about, "content": {JSON: {"schema": schema}}}))
}

fn responses(route: &Route, verb: Option<&Verb>) -> Value {
    let content = match (route.answer, verb) {
        (Answer::Verb, Some(verb)) => {
            let mut schema = plain(TOOL.schema(verb)["reply"].clone());
            forget(&mut schema, "error");
            json!({JSON: {"schema": schema}})
        }
        (Answer::Stream | Answer::Events, _) => json!({NDJSON: {"schema": {
            "type": "string",
            "description": "lines, each of them an #/components/schemas/Event",
        }}}),
        (Answer::Download, _) => json!({"application/octet-stream": {}}),
        (Answer::Upload, _) => json!({JSON: {"schema": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "path": {"type": "string"},
                "copied_bytes": {"type": "integer", "minimum": 0, "description": "the file's size"},
            },
            "required": ["id", "path", "copied_bytes"],
        }}}),
        (Answer::Description | Answer::Verb, _) => json!({JSON: {"schema": {"type": "object"}}}),
    };
    let mut all = Map::new();
    all.insert(route.status.to_string(), json!({"description": route.about, "content": content}));
    if !matches!(route.answer, Answer::Events | Answer::Description) {
        let of_bodies = [StatusCode::REQUEST_TIMEOUT, StatusCode::PAYLOAD_TOO_LARGE];
        let takes_body = route.method == "POST" || route.answer == Answer::Upload;
        for status in ERRORS.into_iter().chain(of_bodies.into_iter().filter(|_| takes_body)) {
            all.insert(status.as_str().to_owned(), json!({"$ref": "#/components/responses/Error"}));
        }
    }
    all.into()
}

/// A verb's schema as part of another document.
fn plain(mut schema: Value) -> Value {
    if let Some(schema) = schema.as_object_mut() {
        schema.shift_remove("$schema");
        schema.shift_remove("title");
    }
    schema
}

fn forget(schema: &mut Value, field: &str) {
    let Some(schema) = schema.as_object_mut() else { return };
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.shift_remove(field);
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name != field);
        if required.is_empty() {
            schema.shift_remove("required");
        }
    }
}

fn error() -> Value {
    let error = match TOOL.verbs.first() {
        Some(verb) => at(&TOOL.schema(verb)["reply"], "error"),
        None => json!({"type": "object"}),
    };
    json!({"type": "object", "properties": {"error": error}, "required": ["error"]})
}

fn event() -> Value {
    json!({
        "type": "object",
        "properties": {
            "event": {
                "type": "string",
                "description": "of a command: start (pid), stdout and stderr (text, or base64 where it is not UTF-8), \
                                end (exit_code, status) or failed (error); of the states: state (id, state), closed (why)",
            },
            "at": {"type": "string", "format": "date-time"},
        },
        "required": ["event", "at"],
        "additionalProperties": true,
    })
}
