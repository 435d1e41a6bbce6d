//! The contract that every program keeps (docs/contract.md), held against all of them alike. Nothing here needs a
//! privilege, and nothing touches the host: requests are refused, or pass through.

use wrenn_tests::{Output, PROGRAMS, Program, Roots, Value, json};

/// Each kind of error with its exit status: the same number in every program.
const KINDS: [(&str, i32); 9] = [
    ("internal", 1),
    ("invalid", 2),
    ("not_found", 3),
    ("conflict", 4),
    ("unsupported", 5),
    ("exhausted", 6),
    ("timeout", 7),
    ("peer", 8),
    ("corrupt", 9),
];

/// Runs `check` for every program; a failure names the program, and the others are still checked.
fn every_program(check: impl Fn(&Roots, &str) + std::panic::RefUnwindSafe) {
    let failed: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|name| std::panic::catch_unwind(|| check(&Roots::new(), name)).is_err())
        .collect();
    assert!(failed.is_empty(), "the contract is not kept by {failed:?}; why is said above");
}

/// Runs `check` for every verb of every program, with the verb's schema.
fn every_verb(check: impl Fn(&Roots, &str, &str, &Value) + std::panic::RefUnwindSafe) {
    every_program(|roots, name| {
        for (verb, schema) in schema(roots, name)["verbs"].as_object().expect("verbs") {
            check(roots, name, verb, schema);
        }
    });
}

fn schema(roots: &Roots, name: &str) -> Value {
    roots.program(name).args(["schema"]).run().success().reply()
}

/// `TOOL VERB -`: reads its requests from stdin, whatever the verb does without arguments.
fn reading(roots: &Roots, name: &str, verb: &str) -> Program {
    roots.program(name).args([verb, "-"])
}

/// A refusal: one line, one `error` object with all its fields, this status, and something on stderr for a person.
fn refused(output: Output, status: i32, mentions: &str) -> Value {
    let output = output.status_is(status);
    let reply = output.reply();
    let error = &reply["error"];
    let kind = KINDS.iter().find(|(_, number)| *number == status).expect("a known status").0;
    assert_eq!(error["kind"], kind, "{}: {reply}", output.line);
    for text in ["tool", "verb", "code", "message"] {
        assert!(error[text].is_string(), "{}: error.{text} in {reply}", output.line);
    }
    assert!(error["detail"].is_array() && error["retry"].is_boolean(), "{}: {reply}", output.line);
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains(mentions), "{}: {message:?} should name {mentions:?}", output.line);
    assert!(!message.contains('\n') && !output.stderr.is_empty(), "{}: {}", output.line, output.stderr);
    reply
}

#[test]
fn version_tells_the_program_and_its_version() {
    every_program(|roots, name| {
        for word in ["version", "--version"] {
            let reply = roots.program(name).args([word]).run().success().reply();
            assert_eq!(reply, json!({"tool": name, "version": env!("CARGO_PKG_VERSION")}));
        }
    });
}

#[test]
fn help_tells_every_verb_and_every_field_with_its_type_and_an_example() {
    every_program(|roots, name| {
        let text = roots.program(name).args(["--help"]).run().success().text();
        let schema = schema(roots, name);
        for verb in schema["verbs"].as_object().expect("verbs").keys() {
            let listed = text.lines().any(|line| line.split_whitespace().next() == Some(verb));
            assert!(listed, "{name} --help does not list {verb}:\n{text}");
        }
        for word in ["WRENN_ROOT", "WRENN_RUN", "Exit status", "schema", "completions", "version"] {
            assert!(text.contains(word), "{name} --help does not mention {word}");
        }
    });
    every_verb(|roots, name, verb, schema| {
        let text = roots.program(name).args([verb, "--help"]).run().success().text();
        for part in ["request", "reply"] {
            for (path, _) in leaves("", &schema[part]) {
                if path == "error" || path.starts_with("error.") {
                    continue;
                }
                let told = text.lines().any(|line| line.trim_start().starts_with(&format!("{path}  <")));
                assert!(told, "{name} {verb} --help does not tell {path} and its type:\n{text}");
            }
        }
        let example = text.split("Example:\n").nth(1).unwrap_or_default().trim();
        let own = format!("{name} {verb}");
        assert!(example.contains(&own), "{own} --help has no example of it: {example:?}");
        assert_eq!(bash_syntax(example), "", "{own}: the example is not a command line: {example}");
    });
}

/// Dotted paths of the fields that are not only a way to others, with their schemas.
fn leaves(prefix: &str, schema: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{name}");
        if field.get("description").is_some() {
            found.push((path.clone(), field.clone()));
        }
        found.extend(leaves(&format!("{path}."), field));
    }
    found
}

/// What bash says of a script that it only reads.
fn bash_syntax(script: &str) -> String {
    let checked = std::process::Command::new("bash").args(["-n", "-c", script]).output().expect("bash");
    String::from_utf8_lossy(&checked.stderr).into_owned()
}

#[test]
fn schema_is_json_schema_of_every_request_and_reply() {
    const TYPES: [&str; 6] = ["string", "integer", "number", "boolean", "array", "object"];
    every_verb(|roots, name, verb, whole| {
        let own = roots.program(name).args(["schema", verb]).run().success().reply();
        assert_eq!(&own, whole, "{name} schema {verb} is the part of {name} schema");
        for part in ["request", "reply"] {
            let schema = &own[part];
            assert_eq!(schema["type"], "object", "{name} {verb} {part}");
            assert_eq!(schema["additionalProperties"], true, "{name} {verb} {part}: unknown fields pass");
            assert!(schema["$schema"].as_str().is_some_and(|url| url.contains("json-schema.org")));
            for (path, field) in leaves("", schema) {
                let known = field.get("type").is_none_or(|kind| TYPES.iter().any(|known| kind == known));
                assert!(known, "{name} {verb} {part}: {path} is of type {}", field["type"]);
                let about = field["description"].as_str().unwrap_or_default();
                assert!(!about.is_empty(), "{name} {verb} {part}: {path} says nothing of itself");
            }
        }
        assert!(own["reply"]["properties"]["error"].is_object(), "{name} {verb}: a reply may be an error");
    });
}

#[test]
fn completions_know_every_verb() {
    every_program(|roots, name| {
        let verbs = schema(roots, name)["verbs"].as_object().expect("verbs").clone();
        for shell in ["bash", "zsh", "fish"] {
            let script = roots.program(name).args(["completions", shell]).run().success().text();
            for verb in verbs.keys() {
                assert!(script.contains(verb), "{name} completions {shell} has no {verb}");
            }
            if shell == "bash" {
                assert_eq!(bash_syntax(&script), "", "{name} completions bash");
            }
        }
        refused(roots.program(name).args(["completions", "tcsh"]).run(), 2, "tcsh");
    });
}

#[test]
fn bash_completes_verbs_actions_flags_and_fields() {
    let script = Roots::new().program("wrenn").args(["completions", "bash"]).run().success().text();
    // What a tab key at the end of this line offers.
    let offered = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        let ask = r#"COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _wrenn; echo "${COMPREPLY[*]}""#;
        let mut bash = std::process::Command::new("bash");
        bash.args(["-uc", &format!("{script}\n{ask}"), "bash"]).args(&words);
        let output = bash.stderr(std::process::Stdio::null()).output().expect("bash");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    };
    assert_eq!(offered("wrenn te"), "template");
    assert!(offered("wrenn template ").starts_with("ls get rm --"), "{}", offered("wrenn template "));
    assert_eq!(offered("wrenn template g"), "get");
    assert_eq!(offered("wrenn template --pr"), "--pretty");
    assert_eq!(offered("wrenn template na"), "name=");
    assert_eq!(offered("wrenn rm g"), "", "what is an action of one verb is none of another");
}

#[test]
fn what_is_not_json_gets_one_error_line_and_status_2() {
    every_verb(|roots, name, verb, _| {
        for text in ["{\"a\":", "hello", "}", "\u{0}", "{'a':1}"] {
            let output = reading(roots, name, verb).stdin(text).run();
            refused(output, 2, "JSON");
        }
        for text in ["[]", "7", "\"x\"", "null", "true"] {
            refused(reading(roots, name, verb).stdin(text).run(), 2, "a request is a JSON object");
        }
    });
}

#[test]
fn an_unknown_verb_flag_or_word_is_refused_by_name() {
    every_program(|roots, name| {
        refused(roots.program(name).args(["frobnicate"]).run(), 2, "frobnicate");
        refused(roots.program(name).run(), 2, "no verb");
    });
    every_verb(|roots, name, verb, _| {
        for word in ["--frobnicate", "-x", "a..b=1", "=1", "x:={", "--log=loud", "--wait=soon", "--pretty=1"]
        {
            let bare = word.trim_start_matches('-').split('=').next().unwrap_or(word);
            refused(roots.program(name).args([verb, word]).run(), 2, bare.trim_end_matches(':'));
        }
    });
}

/// A document of somebody else's fields, in an order and with numbers that a careless program would change.
const STRANGE: &str =
    r#""z":1e2,"a":18446744073709551616,"x":{"y":0.10,"b":null,"q":[-0,1E-7]},"é":"\u00fc\t","m":1.0"#;

#[test]
fn failed_documents_pass_untouched_in_order_and_the_first_decides_the_status() {
    every_verb(|roots, name, verb, _| {
        for (kind, status) in KINDS {
            let document = format!(
                r#"{{{STRANGE},"error":{{"tool":"wrenn-x","verb":"do","kind":"{kind}","code":"x.y","message":"no","detail":["a","b"],"errno":17,"retry":false,"own":1e400}},"after":[]}}"#
            );
            let document = document.replace("\\u00fc", "ü");
            let output = reading(roots, name, verb).stdin(&document).run().status_is(status);
            assert_eq!(output.text().trim_end_matches('\n'), document, "{}", output.line);
        }
        // On one line, on many, and with nothing between them.
        let failed = |n: usize, kind: &str| {
            format!(
                r#"{{"n":{n}.{n}0,"error":{{"kind":"{kind}","code":"","message":"","detail":[],"retry":false}}}}"#
            )
        };
        let documents = [failed(1, "peer"), failed(2, "corrupt"), failed(3, "invalid"), failed(4, "timeout")];
        for between in ["", " ", "\n", "\n\n \t\r\n"] {
            let output = reading(roots, name, verb).stdin(documents.join(between)).run().status_is(8);
            assert_eq!(output.text(), documents.join("\n") + "\n", "{}", output.line);
        }
        let output = reading(roots, name, verb).run().success();
        assert_eq!(output.text(), "", "{}: no request, no reply", output.line);
    });
}

#[test]
fn a_refused_request_comes_back_whole_with_arguments_on_top_and_its_error() {
    for (name, verb, wrong) in REFUSALS {
        let roots = Roots::new();
        let before = format!("{{{STRANGE},\"over\":1}}");
        let mut arguments = vec![*verb, "over:=2.50", "-", "deep.er=text"];
        arguments.extend(wrong.iter().map(|(argument, _)| *argument));
        let output = roots.program(name).args(&arguments).stdin(before.repeat(2)).run().status_is(2);
        let text = output.text();
        assert_eq!(text.lines().count(), 2, "{}: a reply for each request:\n{text}", output.line);
        let start = format!(r#"{{{STRANGE},"over":2.50,"deep":{{"er":"text"}}"#).replace("\\u00fc", "ü");
        for line in text.lines() {
            assert!(line.starts_with(&start), "{}: {line}\nshould start {start}", output.line);
        }
        for reply in output.replies() {
            assert_eq!(reply["error"]["tool"], **name, "{reply}");
            assert_eq!(reply["error"]["verb"], **verb, "{reply}");
        }
        assert!(!roots.root().exists(), "{}: nothing is touched before a request is found good", output.line);
    }
}

#[test]
fn pretty_indents_and_changes_nothing_else() {
    every_program(|roots, name| {
        let verb = schema(roots, name)["verbs"].as_object().and_then(|verbs| verbs.keys().next().cloned());
        let document = r#"{"n":1e2,"error":{"kind":"peer","x":[1,2]}}"#;
        let output = reading(roots, name, &verb.expect("a verb")).args(["--pretty"]).stdin(document).run();
        let text = output.status_is(8).text();
        let joined: String = text.lines().map(str::trim_start).collect();
        assert!(text.lines().count() > 4, "{name}: {text}");
        assert_eq!(joined.replace("\": ", "\":"), document, "{name}");
    });
}

#[test]
fn stdout_holds_replies_only_and_logs_go_to_stderr_in_the_format_asked_for() {
    for (name, verb, wrong) in REFUSALS {
        let roots = Roots::new();
        let arguments = wrong.iter().map(|(argument, _)| *argument);
        let program = roots.program(name).args([*verb, "--log=debug", "--log-format", "json", "-"]);
        let output = program.args(arguments).stdin("{}").run().status_is(2);
        assert_eq!(output.replies().len(), 1, "{}", output.line);
        for line in output.stderr.lines() {
            let entry: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}: {error} in the log line {line:?}", output.line));
            assert!(entry["level"].is_string() && entry["message"].is_string(), "{entry}");
        }
        assert!(!output.stderr.is_empty(), "{}", output.line);
    }
}

#[test]
fn a_reply_that_nobody_reads_is_a_failure_of_the_peer_and_no_signal() {
    every_program(|roots, name| {
        assert_eq!(roots.program(name).args(["version"]).run_unread(), Some(8), "{name} version");
        assert_eq!(roots.program(name).args(["--help"]).run_unread(), Some(8), "{name} --help");
    });
}

/// A verb of a program, and arguments each of which is wrong with the field that the refusal names.
type Refusal = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// One wrong argument at a time is added to a request that is otherwise not complete either: whatever a program looks
/// at first, it must name a field and touch nothing.
const REFUSALS: &[Refusal] = &[
    ("wrenn-snap", "pack", &[("kind=half", "kind"), ("kind:=7", "kind")]),
    ("wrenn-snap", "unpack", &[("dir:=7", "dir")]),
    ("wrenn-snap", "merge", &[("dir:=[]", "dir")]),
    ("wrenn-snap", "inspect", &[("dir=", "dir")]),
    ("wrenn-snap", "verify", &[("dir:=null", "dir")]),
    ("wrenn-uffd", "serve", &[("source:=7", "source")]),
    ("wrenn-uffd", "report", &[("trace:=7", "trace")]),
    ("wrenn-cow", "create", &[("id=No_Such", "id")]),
    ("wrenn-cow", "restore", &[("id=No_Such", "id")]),
    ("wrenn-net", "create", &[("net.slot=seven", "slot")]),
    ("wrenn-net", "remove", &[("id:=7", "id")]),
    ("wrenn-launch", "boot", &[("id=../../etc", "id")]),
    ("wrenn-launch", "restore", &[("id=", "id")]),
    ("wrenn-launch", "stop", &[("vm.pid=x", "vm.pid")]),
    ("wrenn-guest", "ready", &[("guest.url:=7", "guest.url")]),
    ("wrenn-guest", "exec", &[("cmd:={}", "cmd")]),
    ("wrenn", "create", &[("id=No_Such", "id")]),
    ("wrenn", "pause", &[("id:=[]", "id")]),
];

#[test]
fn a_wrong_field_is_refused_by_name() {
    for (name, verb, wrong) in REFUSALS {
        for (argument, field) in *wrong {
            let roots = Roots::new();
            refused(roots.program(name).args([verb, argument]).run(), 2, field);
        }
    }
}

#[test]
fn a_required_field_that_is_missing_is_refused_by_name() {
    every_verb(|roots, name, verb, schema| {
        let request = &schema["request"];
        if required("", request).is_empty() {
            return;
        }
        let output = reading(roots, name, verb).stdin("{}").run().status_is(2);
        let reply = output.reply();
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        // The first of them that is missed, or one that stands in for it (a page server's source, an agent's address).
        let own = |path: &str| message.contains(path.rsplit('.').next().unwrap_or(path));
        let named = leaves("", request).iter().any(|(path, _)| own(path));
        assert!(named, "{}: {message:?} names no field of the request", output.line);
        assert!(!roots.root().exists(), "{}: nothing is touched before", output.line);
    });
}

/// Dotted paths of the required fields.
fn required(prefix: &str, schema: &Value) -> Vec<String> {
    let mut found: Vec<_> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|name| Some(format!("{prefix}{}", name.as_str()?)))
        .collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        found.extend(required(&format!("{prefix}{name}."), field));
    }
    found
}
