//! The OpenAPI document and the server say the same.

use std::collections::BTreeSet;

use wrenn_tests::host::TestHost;
use wrenn_tests::{Value, json};

use crate::client::Response;
use crate::server::Server;

wrenn_tests::on_a_toy![every_route_of_the_description_answers_as_it_says];

fn every_route_of_the_description_answers_as_it_says(host: &TestHost) {
    let server = Server::start(host.program("wrenn").args(["serve"]));
    let api = Api { document: server.get("/v1/openapi.json").status_is(200).json(), server };
    assert_eq!(api.document["openapi"], "3.1.0");
    let one = json!({"id": "sv-one", "spec": {"memory_mib": 256, "disk_mib": 512}});
    let blue = json!({"cmd": ["sh", "-c", "kept=blue; :"]});
    let tell = json!({"cmd": ["sh", "-c", "cat /mem/kept /kept"]});
    let none = &Value::Null;
    let mut called = BTreeSet::from(["describe"]);
    for (operation, names, query, body, status) in [
        ("createSandbox", "", "", &one, 201),
        ("createSandbox", "", "", &one, 409),
        ("listSandboxes", "", "?state=running", none, 200),
        ("getSandbox", "sv-one", "", none, 200),
        ("getSandbox", "sv-none", "", none, 404),
        ("pingSandbox", "sv-one", "", none, 200),
        ("execInSandbox", "sv-one", "", &blue, 200),
        ("execInSandbox", "sv-one", "", &json!({"cmd": []}), 400),
        ("writeFile", "sv-one", "?path=/x", &json!("content"), 200),
        ("readFile", "sv-one", "?path=/x&user=root", none, 200),
        ("readFile", "sv-one", "", none, 400),
        ("snapshotSandbox", "sv-one", "", &json!({"name": "team/one"}), 201),
        ("pauseSandbox", "sv-one", "?wait=5", none, 200),
        ("pauseSandbox", "sv-one", "", none, 409),
        ("createSnapshot", "", "", &json!({"id": "sv-one", "name": "two"}), 201),
        ("listSnapshots", "", "", none, 200),
        ("getSnapshot", "team%2Fone", "", none, 200),
        ("getSnapshot", "none", "", none, 404),
        ("resumeSandbox", "sv-one", "?timeout=100", &json!({}), 200),
        ("execInSandbox", "sv-one", "", &tell, 200),
        ("removeSnapshot", "two", "", none, 200),
        ("removeSnapshot", "team/one", "", none, 200),
        ("watchStates", "", "", none, 200),
        ("removeSandbox", "sv-one", "", none, 200),
    ] {
        host.step(&format!("{operation} {names}{query}: {status}"));
        let response = api.call(operation, names, query, body, status);
        if operation == "execInSandbox" && body == &tell {
            assert!(String::from_utf8(response.body).unwrap().contains(r#""text":"blue\nblue\n""#));
        }
        called.insert(operation);
    }
    api.every_method_of_the_server_is_in_it(&called);
    api.server.stop();
}

struct Api {
    document: Value,
    server: Server,
}

impl Api {
    /// Method, path and description of an operation.
    fn operation(&self, id: &str) -> (&str, &str, &Value) {
        let paths = self.document["paths"].as_object().unwrap();
        let all = paths.iter().flat_map(|(path, methods)| {
            methods.as_object().unwrap().iter().map(move |(method, it)| (method.as_str(), path.as_str(), it))
        });
        all.into_iter().find(|(.., it)| it["operationId"] == id).unwrap_or_else(|| panic!("no {id}"))
    }

    /// Makes a request as the description says, and sees that the reply is one that it tells of.
    fn call(&self, operation: &str, name: &str, query: &str, body: &Value, status: u16) -> Response {
        let (method, path, it) = self.operation(operation);
        let target = path.replace("{id}", name).replace("{name}", name) + query;
        let schema = &it["requestBody"]["content"]["application/json"]["schema"];
        if status < 300 && !schema.is_null() && !body.is_null() {
            self.check(schema, body, &format!("{operation}: request"));
        }
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let mut client = self.server.client();
        client.send(&method.to_uppercase(), &target, text.as_bytes());
        let response = if operation == "watchStates" { client.head() } else { client.response() };
        let response = response.status_is(status);
        let told = self.followed(&it["responses"][status.to_string()]);
        assert!(told["description"].is_string(), "{operation} does not tell of {status}");
        let kind = response.header("content-type").expect("a type");
        let content =
            told["content"].get(kind).unwrap_or_else(|| panic!("{operation}: {kind} is not told of"));
        if kind == "application/json" {
            self.check(&content["schema"], &response.json(), &format!("{operation}: {status}"));
        }
        if kind == "application/x-ndjson" && operation != "watchStates" {
            let event = &self.document["components"]["schemas"]["Event"];
            for line in String::from_utf8_lossy(&response.body).lines() {
                self.check(
                    event,
                    &serde_json::from_str(line).expect("JSON"),
                    &format!("{operation}: a line"),
                );
            }
        }
        response
    }

    fn every_method_of_the_server_is_in_it(&self, called: &BTreeSet<&str>) {
        let mut described = BTreeSet::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            let methods = methods.as_object().unwrap();
            described.extend(methods.values().map(|it| it["operationId"].as_str().unwrap()));
            let target = path.replace("{id}", "x").replace("{name}", "x");
            let refused = self.server.call("OPTIONS", &target, &Value::Null).status_is(405);
            let allowed: BTreeSet<_> =
                refused.header("allow").unwrap().to_lowercase().split(", ").map(str::to_owned).collect();
            assert_eq!(allowed, methods.keys().cloned().collect(), "{path}");
        }
        assert_eq!(&described, called, "each of them is looked at here");
    }

    /// A schema, or what it refers to.
    fn followed<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => {
                self.document.pointer(&reference[1..]).unwrap_or_else(|| panic!("{reference}"))
            }
            None => schema,
        }
    }

    /// As much of JSON Schema as the description uses.
    fn check(&self, schema: &Value, value: &Value, place: &str) {
        let schema = self.followed(schema);
        let is = match schema["type"].as_str() {
            None => true,
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_u64() || value.is_i64(),
            Some("number") => value.is_number(),
            Some(other) => panic!("{place}: what is a {other}?"),
        };
        assert!(is, "{place}: {value} is not of type {}", schema["type"]);
        let list = |name: &str| schema[name].as_array().cloned().unwrap_or_default();
        for field in list("required") {
            assert!(value.get(field.as_str().unwrap()).is_some(), "{place}: no {field} in {value}");
        }
        assert!(schema["enum"].is_null() || list("enum").contains(value), "{place}: {value}");
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = value.get(name) {
                self.check(inner, value, &format!("{place}: {name}"));
            }
        }
        for item in value.as_array().into_iter().flatten().filter(|_| schema["items"].is_object()) {
            self.check(&schema["items"], item, place);
        }
    }
}
