//! `/files` and `filesystem.Filesystem`.
#![forbid(unsafe_code)]

mod support;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use serde_json::{Value, json};
use support::{
    Agent, root_or_skip,
    rpc::{CODECS, Codec},
    wire::{Fields, Message},
};

const FORM: (&str, &str) = ("Content-Type", "multipart/form-data; boundary=cut");

fn url(path: &Path) -> String {
    format!("/files?path={}", path.display())
}

/// A form of (file name, content) parts.
fn form(parts: &[(Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        let name = name.map_or_else(String::new, |name| format!("; filename=\"{name}\""));
        body.extend(format!("--cut\r\nContent-Disposition: form-data; name=\"file\"{name}\r\n\r\n").bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--cut--\r\n");
    body
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 253) as u8).collect()
}

#[test]
fn a_raw_body_becomes_the_file_and_comes_back() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/deeper/a file");
    let encoded = url(&path).replace(' ', "%20");
    for content in [pattern(3_000_000), b"short".to_vec(), vec![]] {
        let reply =
            agent.request("POST", &encoded, &[("Content-Type", "application/octet-stream")], &content);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json(), json!([{"name": "a file", "type": "file", "path": path}]));
        assert!(fs::read(&path).unwrap() == content, "a shorter file leaves nothing of the longer one");
        let back = agent.get(&encoded.replace("%20", "+"));
        assert_eq!(back.status, 200);
        assert!(back.bytes() == content);
    }
}

#[test]
fn one_part_of_a_form_goes_to_the_path_and_several_to_their_own() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let (one, two, three) =
        (directory.path().join("1"), directory.path().join("x/2"), directory.path().join("3"));
    let content = pattern(1_000_000);
    let reply = agent.request("POST", &url(&one), &[FORM], &form(&[(Some("any"), &content)]));
    assert_eq!(reply.json(), json!([{"name": "1", "type": "file", "path": one}]));
    assert!(fs::read(&one).unwrap() == content);

    let parts = form(&[(Some(two.to_str().unwrap()), b"two\r\n--cu"), (Some(three.to_str().unwrap()), b"")]);
    let reply = agent.request("POST", "/files", &[FORM], &parts);
    assert_eq!(reply.json()[1]["path"], json!(three));
    assert_eq!(fs::read(&two).unwrap(), b"two\r\n--cu");
    assert_eq!(fs::read(&three).unwrap(), b"");
}

#[test]
fn forms_that_do_not_say_where_to_are_refused() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    let name = path.to_str().unwrap();
    let post =
        |query: &str, header: (&str, &str), body: &[u8]| agent.request("POST", query, &[header], body).status;
    assert_eq!(post("/files", FORM, &form(&[(None, b"x")])), 400);
    assert_eq!(post("/files", FORM, &form(&[(Some(""), b"x")])), 400);
    assert_eq!(post("/files", FORM, &form(&[])), 400);
    assert_eq!(post("/files", FORM, b"no form at all"), 400);
    assert_eq!(post(&url(&path), FORM, &form(&[(Some(name), b"1"), (Some(name), b"2")])), 400);
    assert_eq!(post(&url(&path), ("Content-Type", "multipart/form-data"), &form(&[(Some(name), b"1")])), 400);
    assert_eq!(post(&url(&path), ("Content-Encoding", "gzip"), b"x"), 415);
}

#[test]
fn privileged_files_and_new_directories_belong_to_the_user() {
    if !root_or_skip() {
        return;
    }
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/file");
    assert_eq!(agent.request("POST", &(url(&path) + "&username=nobody"), &[], b"x").status, 200);
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    let nobody = owner(&path);
    assert_ne!(nobody, 0);
    assert_eq!((owner(path.parent().unwrap()), owner(&directory.path().join("a"))), (nobody, nobody));
    assert_eq!(owner(directory.path()), 0, "what was there keeps its owner");
    // A path that is not absolute starts at the user's home.
    let home = tempfile::tempdir().unwrap();
    let relative = agent.get(&format!("/files?path=../../..{}&username=root", path.display()));
    assert_eq!(relative.bytes(), b"x");
    drop(home);
}

#[test]
fn a_large_file_passes_both_ways_without_being_held() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large");
    let content = pattern(100 << 20);
    assert_eq!(agent.request("POST", &url(&path), &[], &content).status, 200);
    let mut back = agent.get(&url(&path));
    assert_eq!(back.header("content-length"), Some("104857600"));
    let (mut buffer, mut total) = (vec![0; 1 << 16], 0);
    loop {
        let read = back.read(&mut buffer).unwrap();
        if read == 0 {
            break;
        }
        assert!(buffer[..read] == content[total..total + read], "at {total}");
        total += read;
    }
    assert_eq!(total, content.len());
    let most = agent.memory_kib("VmHWM");
    assert!(most < 32 << 10, "the agent grew to {most} KiB");
}

#[test]
fn files_of_proc_and_pipes_are_what_they_are() {
    let agent = Agent::start();
    let version = agent.get("/files?path=/proc/version").bytes();
    assert_eq!(version, fs::read("/proc/version").unwrap());
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(agent.get(&url(&pipe)).status, 400);
    assert_eq!(agent.request("POST", &url(&pipe), &[], b"x").status, 400);
}

/// Calls a method of one or two paths.
fn call(agent: &Agent, codec: Codec, method: &str, fields: &[(&str, &str)]) -> Result<Value, String> {
    let request = match codec {
        Codec::Json => {
            Value::Object(fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
                .to_string()
                .into_bytes()
        }
        Codec::Proto => fields
            .iter()
            .zip(1..)
            .fold(Message::default(), |message, ((_, value), field)| message.bytes(field, value))
            .encode(),
    };
    let reply = agent.unary(codec, &format!("/filesystem.Filesystem/{method}"), &request)?;
    if codec == Codec::Json {
        return Ok(serde_json::from_slice::<Value>(&reply).unwrap()["entry"].take());
    }
    let Some(entry) = Fields::decode(&reply).message(1) else { return Ok(Value::Null) };
    let kinds = ["FILE_TYPE_UNSPECIFIED", "FILE_TYPE_FILE", "FILE_TYPE_DIRECTORY", "FILE_TYPE_SYMLINK"];
    let mut json = json!({
        "name": entry.text(1), "type": kinds[entry.number(2) as usize], "path": entry.text(3),
        "mode": entry.number(5), "permissions": entry.text(6),
        "owner": entry.text(7), "group": entry.text(8),
    });
    if entry.number(4) != 0 {
        json["size"] = entry.number(4).to_string().into();
    }
    if let Some(target) = entry.text(10) {
        json["symlinkTarget"] = target.into();
    }
    Ok(json)
}

#[test]
fn names_are_described_made_moved_and_removed() {
    let agent = Agent::start();
    for codec in CODECS {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let call = |method: &str, fields: &[(&str, &str)]| call(&agent, codec, method, fields);

        let made = call("MakeDir", &[("path", &at("d/e"))]).unwrap();
        assert_eq!((&made["name"], &made["type"]), (&json!("e"), &json!("FILE_TYPE_DIRECTORY")));
        assert_eq!(call("MakeDir", &[("path", &at("d/e"))]), Err("already_exists".into()));

        fs::write(at("d/file"), "12345").unwrap();
        fs::set_permissions(at("d/file"), fs::Permissions::from_mode(0o750)).unwrap();
        let entry = call("Stat", &[("path", &at("d/file"))]).unwrap();
        assert_eq!((&entry["size"], &entry["mode"]), (&json!("5"), &json!(0o750)), "{entry}");
        assert_eq!((&entry["permissions"], &entry["type"]), (&json!("-rwxr-x---"), &json!("FILE_TYPE_FILE")));

        symlink("file", at("d/link")).unwrap();
        symlink("nowhere", at("d/broken")).unwrap();
        let link = call("Stat", &[("path", &at("d/link"))]).unwrap();
        assert_eq!((&link["symlinkTarget"], &link["type"]), (&json!("file"), &json!("FILE_TYPE_FILE")));
        let broken = call("Stat", &[("path", &at("d/broken"))]).unwrap();
        assert_eq!(
            (&broken["symlinkTarget"], &broken["type"]),
            (&json!("nowhere"), &json!("FILE_TYPE_SYMLINK"))
        );

        let moved = call("Move", &[("source", &at("d/file")), ("destination", &at("new/place"))]).unwrap();
        assert_eq!(moved["path"], json!(at("new/place")));
        assert_eq!(fs::read(at("new/place")).unwrap(), b"12345");

        call("Remove", &[("path", &at("d"))]).unwrap();
        call("Remove", &[("path", &at("d"))]).unwrap();
        assert!(!Path::new(&at("d")).exists());

        for (method, path, code) in [
            ("Stat", at("d"), "not_found"),
            ("Stat", String::new(), "invalid_argument"),
            ("Stat", at("new/place/below"), "invalid_argument"),
            ("MakeDir", at("new/place"), "already_exists"),
            ("MakeDir", at("new/place/below"), "invalid_argument"),
            ("Move", at("d"), "not_found"),
            ("ListDir", at("d"), "not_found"),
            ("ListDir", at("new/place"), "invalid_argument"),
            ("Remove", "/".into(), "invalid_argument"),
            ("Remove", String::new(), "invalid_argument"),
        ] {
            let fields = [
                (if method == "Move" { "source" } else { "path" }, path.as_str()),
                ("destination", &at("to")),
            ];
            let fields = if method == "Move" { &fields[..] } else { &fields[..1] };
            assert_eq!(call(method, fields), Err(code.into()), "{method} {path:?}");
        }
    }
}

#[test]
fn a_directory_is_listed_as_deep_as_asked_and_links_are_not_followed() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("a/b/c")).unwrap();
    fs::write(directory.path().join("a/f"), "").unwrap();
    symlink(directory.path(), directory.path().join("z")).unwrap();
    let names = |depth: u32| {
        let request = json!({"path": directory.path(), "depth": depth}).to_string();
        let reply = agent.unary(Codec::Json, "/filesystem.Filesystem/ListDir", request.as_bytes()).unwrap();
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        let names = reply["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["name"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(0), "a z");
    assert_eq!(names(1), "a z");
    assert_eq!(names(2), "a b f z");
    assert_eq!(names(9), "a b c f z");
}
