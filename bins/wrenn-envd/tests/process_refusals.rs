//! What `process.Process` refuses, and how.
#![forbid(unsafe_code)]

mod support;

use support::{
    Agent,
    rpc::{CODECS, Codec, Event, Start, Which},
};

#[test]
fn what_cannot_be_started_is_refused_with_its_reason() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let plain = plain.to_str().unwrap();
    let start = Start::default();
    let cases: &[(&str, Start)] = &[
        ("not_found", Start { cmd: "no-such-command", ..start.clone() }),
        ("not_found", Start { cmd: "/no/such/command", ..start.clone() }),
        ("not_found", Start { cmd: "true", cwd: Some("/no/such/directory"), ..start.clone() }),
        ("not_found", Start { cmd: "sh", envs: &[("PATH", "/nowhere")], ..start.clone() }),
        ("invalid_argument", Start { cmd: "true", cwd: Some(plain), ..start.clone() }),
        ("invalid_argument", Start { cmd: "", ..start.clone() }),
        ("invalid_argument", Start { cmd: "true", args: &["a\0b"], ..start.clone() }),
        ("invalid_argument", Start { cmd: "true", envs: &[("A=B", "c")], ..start.clone() }),
        ("invalid_argument", Start { cmd: "true", envs: &[("", "c")], ..start.clone() }),
        ("invalid_argument", Start { cmd: "true", pty: Some((0, 24)), ..start.clone() }),
        ("invalid_argument", Start { cmd: "true", pty: Some((70_000, 24)), ..start.clone() }),
        ("permission_denied", Start { cmd: plain, ..start.clone() }),
    ];
    for codec in CODECS {
        for (expected, start) in cases {
            let first = agent.start_process(codec, start).next();
            assert_eq!(
                first,
                Event::Closed(Some((*expected).into())),
                "{codec:?} {:?} {:?}",
                start.cmd,
                start.args
            );
        }
        let nobody = agent.start_as(codec, "no-such-user", &Start { cmd: "true", ..start.clone() }).next();
        assert_eq!(nobody, Event::Closed(Some("unauthenticated".into())));

        let mut first =
            agent.start_process(codec, &Start { cmd: "cat", tag: Some("taken"), ..start.clone() });
        first.pid();
        let second =
            agent.start_process(codec, &Start { cmd: "true", tag: Some("taken"), ..start.clone() }).next();
        assert_eq!(second, Event::Closed(Some("already_exists".into())));
        agent.close_stdin(codec, Which::Tag("taken")).unwrap();
        first.life();
    }
    assert_eq!(agent.list(Codec::Json), []);
}

#[test]
fn calls_that_name_nothing_are_refused() {
    let agent = Agent::start();
    for codec in CODECS {
        let nobody = Which::Pid(4_000_000);
        assert_eq!(agent.send_stdin(codec, nobody, b"x"), Err("not_found".into()));
        assert_eq!(agent.close_stdin(codec, Which::Tag("none")), Err("not_found".into()));
        assert_eq!(agent.signal(codec, nobody, 9, "SIGNAL_SIGKILL"), Err("not_found".into()));
        assert_eq!(agent.resize(codec, nobody, 80, 24), Err("not_found".into()));
        for method in ["SendInput", "SendSignal", "CloseStdin", "Update"] {
            let empty: &[u8] = if codec == Codec::Json { b"{}" } else { b"" };
            let refused = agent.unary(codec, &format!("/process.Process/{method}"), empty);
            assert_eq!(refused, Err("invalid_argument".into()), "{method}");
        }
        assert_eq!(agent.unary(codec, "/process.Process/List", b"{\x00"), Err("invalid_argument".into()));
    }
    let mut cat = agent.start_process(Codec::Json, &Start { cmd: "cat", ..Start::default() });
    let pid = cat.pid();
    for codec in CODECS {
        assert_eq!(
            agent.signal(codec, Which::Pid(pid), 0, "SIGNAL_UNSPECIFIED"),
            Err("invalid_argument".into())
        );
        assert_eq!(agent.resize(codec, Which::Pid(pid), 80, 24), Err("failed_precondition".into()));
        assert_eq!(agent.send_pty(codec, Which::Pid(pid), b"x"), Err("failed_precondition".into()));
    }
}
