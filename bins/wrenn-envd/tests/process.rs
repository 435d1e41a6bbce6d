//! `process.Process`, driven over HTTP in both codecs.
#![forbid(unsafe_code)]

mod support;

use support::{
    Agent, root_or_skip,
    rpc::{CODECS, Codec, Event, Start, Which, shell},
};

const TERMINATE: (u64, &str) = (15, "SIGNAL_SIGTERM");
const KILL: (u64, &str) = (9, "SIGNAL_SIGKILL");

#[test]
fn output_and_exit_status_arrive_whole_and_in_their_own_streams() {
    let agent = Agent::start();
    for codec in CODECS {
        let script = "printf 'out\\0put'; printf error >&2; exit 3";
        let life = agent.start_process(codec, &shell(&["-c", script])).life();
        assert_eq!((life.stdout.as_slice(), life.stderr.as_slice()), (&b"out\0put"[..], &b"error"[..]));
        assert_eq!(life.end, Some((3, true, "exit status 3".into())));
        assert_eq!(life.error, None);
        let life = agent.start_process(codec, &Start { cmd: "true", ..Start::default() }).life();
        assert_eq!(life.end, Some((0, true, "exit status 0".into())));
    }
}

#[test]
fn the_environment_is_the_requests_over_the_hosts_over_the_defaults() {
    let agent = Agent::start();
    let body = r#"{"envVars": {"HOST": "host", "BOTH": "host", "USER": "host"}}"#;
    assert_eq!(agent.post("/init", body).status, 200);
    assert_eq!(agent.get("/envs").json()["HOST"], "host");
    for codec in CODECS {
        let args = ["-c", "echo \"$HOST $BOTH $OWN $USER $HOME $PATH\"; env | wc -l"];
        let start = Start { envs: &[("BOTH", "request"), ("OWN", "=a b")], cwd: Some("/"), ..shell(&args) };
        let life = agent.start_process(codec, &start).life();
        let mut lines = life.out().lines();
        let home =
            lines.next().unwrap().strip_prefix("host request =a b host ").expect("the order of precedence");
        assert!(home.starts_with('/') && home.contains(" /usr/local/sbin:"), "{home}");
        // PATH HOME USER LOGNAME HOST BOTH OWN, and the shell's PWD: nothing of the agent's own.
        assert_eq!(lines.next().map(str::trim), Some("8"), "{}", life.out());
    }
}

#[test]
fn the_working_directory_is_the_requests_else_the_hosts_else_home() {
    let agent = Agent::start();
    let pwd = |cwd| {
        let start = Start { cmd: "pwd", cwd, ..Start::default() };
        agent.start_process(Codec::Json, &start).life().out().trim().to_owned()
    };
    assert_eq!(pwd(Some("/usr")), "/usr");
    let home = pwd(None);
    assert_eq!(pwd(Some("~")), home);
    assert_eq!(agent.post("/init", r#"{"defaultWorkdir": "/usr/bin"}"#).status, 200);
    assert_eq!((pwd(None), pwd(Some("/"))), ("/usr/bin".into(), "/".into()));
}

#[test]
fn privileged_a_process_runs_as_the_user_it_is_asked_for() {
    if !root_or_skip() {
        return;
    }
    let agent = Agent::start();
    for codec in CODECS {
        let args = ["-c", "id -un; id -Gn; cat /etc/shadow 2>/dev/null | wc -c"];
        let life = agent.start_as(codec, "nobody", &shell(&args)).life();
        assert_eq!(life.out(), "nobody\nnogroup\n0\n");
    }
    assert_eq!(agent.post("/init", r#"{"defaultUser": "nobody"}"#).status, 200);
    let life = agent.start_process(Codec::Json, &Start { cmd: "whoami", ..Start::default() }).life();
    assert_eq!(life.out(), "nobody\n");
}

#[test]
fn input_reaches_the_process_in_order_and_its_end_is_seen() {
    let agent = Agent::start();
    for codec in CODECS {
        let mut stream = agent.start_process(codec, &Start { cmd: "cat", ..Start::default() });
        let pid = Which::Pid(stream.pid());
        let lines: Vec<String> = (0..50).map(|at| format!("line {at}\n")).collect();
        lines.iter().for_each(|line| agent.send_stdin(codec, pid, line.as_bytes()).unwrap());
        agent.close_stdin(codec, pid).unwrap();
        let life = stream.life();
        assert_eq!((life.out(), life.exit_code()), (lines.concat().as_str(), 0));
    }
}

#[test]
fn input_larger_than_a_pipe_waits_for_its_reader() {
    let agent = Agent::start();
    let input: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8).collect();
    for codec in CODECS {
        let mut stream =
            agent.start_process(codec, &Start { cmd: "cat", tag: Some("cat"), ..Start::default() });
        stream.pid();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                agent.send_stdin(codec, Which::Tag("cat"), &input).unwrap();
                agent.close_stdin(codec, Which::Tag("cat")).unwrap();
            });
            assert!(stream.life().stdout == input);
        });
    }
}

#[test]
fn without_stdin_the_process_reads_the_end_at_once() {
    let agent = Agent::start();
    for codec in CODECS {
        let mut stream =
            agent.start_process(codec, &Start { no_stdin: true, ..shell(&["-c", "cat; read x; sleep 60"]) });
        let pid = Which::Pid(stream.pid());
        assert_eq!(agent.send_stdin(codec, pid, b"x"), Err("failed_precondition".into()));
        assert_eq!(agent.close_stdin(codec, pid), Err("failed_precondition".into()));
        agent.signal(codec, pid, KILL.0, KILL.1).unwrap();
        assert_eq!(stream.life().exit_code(), -1);
    }
}

#[test]
fn signals_reach_the_process_and_what_it_started() {
    let agent = Agent::start();
    for codec in CODECS {
        let trap = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
        let mut stream = agent.start_process(codec, &shell(&["-c", trap]));
        let pid = Which::Pid(stream.pid());
        assert_eq!(stream.next(), Event::Stdout(b"ready\n".into()));
        agent.signal(codec, pid, TERMINATE.0, TERMINATE.1).unwrap();
        let life = stream.life();
        assert!(life.out().ends_with("caught\n"));
        assert_eq!(life.exit_code(), 5);

        // The shell waits for its child; both are killed, or the pipe would stay open for a minute.
        let mut stream = agent.start_process(codec, &shell(&["-c", "sleep 60 & echo $!; wait"]));
        let pid = Which::Pid(stream.pid());
        let Event::Stdout(child) = stream.next() else { panic!("no child") };
        let child: u32 = String::from_utf8(child).unwrap().trim().parse().unwrap();
        agent.signal(codec, pid, KILL.0, KILL.1).unwrap();
        assert_eq!(stream.life().end, Some((-1, false, "signal: killed".into())));
        until_dead(child);
        assert_eq!(agent.signal(codec, pid, KILL.0, KILL.1), Err("not_found".into()));
    }
}

/// Waits for a process that is nobody's child here. Its parent reaps in its own time: a zombie is dead enough.
fn until_dead(pid: u32) {
    for _ in 0..500 {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("process {pid} lives on");
}

#[test]
fn what_was_written_before_the_end_arrives_though_a_child_holds_the_pipe() {
    let agent = Agent::start();
    for codec in CODECS {
        // 60 000 bytes fit the pipe: the shell may end before any of it is read. Its child writes on for ever.
        let script = "(sleep 1; exec yes) & head -c 60000 /dev/zero; exit 4";
        let mut stream = agent.start_process(codec, &shell(&["-c", script]));
        let pid = stream.pid();
        let life = stream.life();
        assert_eq!((life.stdout.len(), life.exit_code()), (60_000, 4));
        let group = nix::unistd::Pid::from_raw(pid.cast_signed());
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).expect("the child that is left");
    }
}

#[test]
fn a_hundred_megabytes_pass_without_being_held() {
    let agent = Agent::start();
    let pattern = "yes 0123456789abcde | head -c 104857600";
    for codec in CODECS {
        let mut stream = agent.start_process(codec, &shell(&["-c", pattern]));
        let (mut total, mut exit) = (0usize, None);
        while exit.is_none() {
            match stream.next() {
                Event::Stdout(bytes) => {
                    let right = bytes
                        .iter()
                        .enumerate()
                        .all(|(at, &byte)| byte == b"0123456789abcde\n"[(total + at) % 16]);
                    assert!(right, "at {total}");
                    total += bytes.len();
                }
                Event::End { exit_code, .. } => exit = Some(exit_code),
                Event::Start(_) | Event::Keepalive => (),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((total, exit), (100 << 20, Some(0)));
    }
    let most = agent.memory_kib("VmHWM");
    assert!(most < 32 << 10, "the agent grew to {most} KiB");
}

#[test]
fn a_listener_that_does_not_read_slows_the_process_and_fills_no_memory() {
    let agent = Agent::start();
    let mut stream = agent.start_process(Codec::Json, &Start { cmd: "yes", ..Start::default() });
    let pid = stream.pid();
    // Written bytes stand still once every buffer on the way is full.
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("yes runs");
        io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse::<u64>().ok()).expect("wchar")
    };
    let mut before = written();
    loop {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = written();
        if now == before && now > 0 {
            break;
        }
        before = now;
    }
    let most = agent.memory_kib("VmHWM");
    assert!(most < 32 << 10, "the agent grew to {most} KiB");
    assert_eq!(agent.get("/health").status, 200);
    agent.signal(Codec::Json, Which::Pid(pid), KILL.0, KILL.1).unwrap();
}

#[test]
fn a_process_outlives_its_client_and_can_be_joined_again() {
    let agent = Agent::start();
    for codec in CODECS {
        let script = "echo first; read line; yes | head -c 1000000 >&2; echo \"got $line\"; exit 6";
        let mut stream = agent.start_process(codec, &Start { tag: Some("job"), ..shell(&["-c", script]) });
        let pid = stream.pid();
        assert_eq!(stream.next(), Event::Stdout(b"first\n".into()));
        stream.disconnect();
        assert_eq!(agent.list(codec), [(pid, Some("job".into()))]);

        let mut joined = agent.connect(codec, Which::Tag("job"));
        let mut again = agent.connect(codec, Which::Pid(pid));
        assert_eq!((joined.pid(), again.pid()), (pid, pid));
        agent.send_stdin(codec, Which::Tag("job"), b"a line\n").unwrap();
        std::thread::scope(|threads| {
            for stream in [joined, again] {
                threads.spawn(move || {
                    let life = stream.life();
                    assert_eq!(
                        (life.out(), life.stderr.len(), life.exit_code()),
                        ("got a line\n", 1_000_000, 6)
                    );
                });
            }
        });
        assert_eq!(agent.list(codec), []);
        assert_eq!(agent.connect(codec, Which::Pid(pid)).next(), Event::Closed(Some("not_found".into())));
    }
}

#[test]
fn output_nobody_listens_to_does_not_stop_a_process() {
    let agent = Agent::start();
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let script = format!("sleep 0.2; head -c 10000000 /dev/zero; echo finished >{}", done.display());
    let mut stream =
        agent.start_process(Codec::Json, &Start { tag: Some("alone"), ..shell(&["-c", &script]) });
    stream.pid();
    stream.disconnect();
    // Joining is how to wait for its end.
    agent.connect(Codec::Json, Which::Tag("alone")).life();
    assert_eq!(std::fs::read_to_string(done).unwrap(), "finished\n");
}

#[test]
fn a_terminal_has_a_size_a_user_at_the_keys_and_a_session() {
    let agent = Agent::start();
    for codec in CODECS {
        let args = ["-c", "stty size; tty; read x; stty size; echo \"typed $x\" >/dev/tty"];
        let mut stream = agent.start_process(codec, &Start { pty: Some((80, 24)), ..shell(&args) });
        let pid = Which::Pid(stream.pid());
        let mut shown = String::new();
        while !shown.contains("/dev/pts/") || !shown.ends_with('\n') {
            let Event::Pty(bytes) = stream.next() else { panic!("{shown}") };
            shown += &String::from_utf8(bytes).unwrap();
        }
        assert!(shown.starts_with("24 80\r\n"), "{shown}");
        agent.resize(codec, pid, 132, 43).unwrap();
        assert_eq!(agent.send_stdin(codec, pid, b"x"), Err("failed_precondition".into()));
        agent.send_pty(codec, pid, b"keys\n").unwrap();
        let life = stream.life();
        let shown = String::from_utf8(life.pty.clone()).unwrap();
        assert_eq!(shown, "keys\r\n43 132\r\ntyped keys\r\n");
        assert_eq!(life.exit_code(), 0);
    }
}

#[test]
fn a_call_with_a_time_limit_ends_its_process_then() {
    let agent = Agent::start();
    for codec in CODECS {
        let request =
            codec.start(&Start { cmd: "sleep", args: &["60"], tag: Some("limited"), ..Start::default() });
        let mut stream = agent.stream(codec, "Start", &[("Connect-Timeout-Ms", "300")], &request);
        let pid = stream.pid();
        // Which of the two comes first is open: the end of the process or that of the call.
        let last = stream.next();
        let killed = Event::End { exit_code: -1, exited: false, status: "signal: killed".into() };
        assert!(last == killed || last == Event::Closed(Some("deadline_exceeded".into())), "{last:?}");
        agent.connect(codec, Which::Tag("limited")).life();
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}

#[test]
fn a_silent_stream_says_that_it_lives() {
    let agent = Agent::start();
    for codec in CODECS {
        let request = codec.start(&Start { cmd: "sleep", args: &["60"], ..Start::default() });
        let mut stream = agent.stream(codec, "Start", &[("Keepalive-Ping-Interval", "1")], &request);
        let pid = stream.pid();
        assert_eq!(stream.next(), Event::Keepalive);
        agent.signal(codec, Which::Pid(pid), KILL.0, KILL.1).unwrap();
    }
}

#[test]
fn orphans_are_nobodys_and_every_process_keeps_its_own_status() {
    let agent = Agent::start();
    std::thread::scope(|threads| {
        for at in 0..40u8 {
            let agent = &agent;
            threads.spawn(move || {
                let codec = CODECS[usize::from(at) % 2];
                let script = format!("(sleep 0.0{} &) ; exit {at}", at % 10);
                assert_eq!(
                    agent.start_process(codec, &shell(&["-c", &script])).life().exit_code(),
                    i64::from(at)
                );
            });
        }
    });
    assert_eq!(agent.list(Codec::Json), []);
}
