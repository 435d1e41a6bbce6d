//! The agent as pid 1: of a PID namespace, in a small root of its own, where a restart ends the namespace.
#![forbid(unsafe_code)]

mod support;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use support::root_or_skip;

/// Programs the script below needs, beside the agent.
const PROGRAMS: [&str; 6] =
    ["/bin/sh", "/bin/sleep", "/bin/cat", "/usr/bin/curl", "/bin/readlink", "/bin/hostname"];

/// A guest, as far as a PID namespace is one.
struct Guest {
    namespace: Child,
    root: tempfile::TempDir,
}

impl Guest {
    /// A root with the agent and a few programs, and the libraries they name.
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let to = |path: &str| root.path().join(path.trim_start_matches('/'));
        for directory in ["sbin", "bin", "usr/bin", "etc", "root", "proc", "dev", "sys", "tmp", "run"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(to("/etc/passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        fs::write(to("/etc/hostname"), "named-by-the-image\n").unwrap();
        let agent = env!("CARGO_BIN_EXE_wrenn-envd");
        fs::copy(agent, to("/sbin/init")).unwrap();
        for program in PROGRAMS {
            fs::copy(program, to(program)).unwrap_or_else(|error| panic!("{program}: {error}"));
        }
        for program in PROGRAMS.into_iter().chain([agent]) {
            let listed = Command::new("ldd").arg(program).output().expect("ldd lists the libraries");
            for word in String::from_utf8(listed.stdout)
                .unwrap()
                .split_whitespace()
                .filter(|word| word.starts_with('/'))
            {
                fs::create_dir_all(to(word).parent().unwrap()).unwrap();
                fs::copy(word, to(word)).unwrap_or_else(|error| panic!("{word}: {error}"));
            }
        }
        symlink("/proc/self/mounts", to("/etc/mtab")).unwrap();
        let namespace = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--uts", "--net", "--ipc", "--kill-child", "chroot"])
            .arg(root.path())
            .arg("/sbin/init")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare, of util-linux");
        Self { namespace, root }
    }

    /// Runs a script beside the agent: in the guest's root and namespaces, as a child of nobody inside.
    fn beside(&self, script: &str) -> String {
        self.try_beside(script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    fn try_beside(&self, script: &str) -> Result<String, String> {
        let (init, root) = (self.init(), format!("/proc/{}/root", self.init()));
        let output = Command::new("nsenter")
            .args([
                "--target",
                &init,
                "--all",
                &format!("--root={root}"),
                &format!("--wd={root}"),
                "/bin/sh",
                "-c",
            ])
            .arg(script)
            .output()
            .expect("nsenter, of util-linux");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// The agent's pid as this machine sees it, once there is one that has become the agent.
    fn init(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.namespace.id());
        patiently("the agent", || {
            let pid = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            program.ends_with("sbin/init").then_some(pid)
        })
    }

    /// Starts a process through the agent by Connect, and gives the raw answer.
    fn process(&self, script: &str) -> String {
        let request = serde_json::json!({"process": {"cmd": "sh", "args": ["-c", script]}}).to_string();
        let mut envelope = vec![0];
        envelope.extend_from_slice(&u32::try_from(request.len()).unwrap().to_be_bytes());
        envelope.extend_from_slice(request.as_bytes());
        fs::write(self.root.path().join("request"), envelope).unwrap();
        self.beside(
            "/usr/bin/curl --silent --fail --max-time 60 --data-binary @/request \
             -H 'Content-Type: application/connect+json' -H 'Connect-Protocol-Version: 1' \
             http://127.0.0.1:49983/process.Process/Start | /bin/cat -v",
        )
    }

    fn serves(&self) {
        let health = "/usr/bin/curl --silent --fail --max-time 10 http://127.0.0.1:49983/health";
        patiently("an agent that serves", || {
            self.try_beside(health).ok().filter(|said| said.contains("version"))
        });
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.namespace.kill(); // gone already: fine; --kill-child takes the rest along
        let _ = self.namespace.wait();
    }
}

/// Asks again for as long as an emulated machine may need.
fn patiently<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "no sign of {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn privileged_pid_1_mounts_names_serves_and_reaps() {
    if !root_or_skip() {
        return;
    }
    let guest = Guest::start();
    guest.serves();
    let mounts = guest.beside("/bin/cat /proc/self/mounts");
    for target in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"] {
        assert!(mounts.lines().any(|line| line.split(' ').nth(1) == Some(target)), "{target} in\n{mounts}");
    }
    assert_eq!(guest.beside("/bin/readlink /dev/fd"), "/proc/self/fd\n");
    assert_eq!(guest.beside("/bin/hostname"), "named-by-the-image\n");

    // Orphans come and go while a process of ours keeps its own status.
    let answer = guest.process("for i in 1 2 3 4 5; do (sleep 0.0$i & ) ; done; sleep 0.2; exit 7");
    assert!(answer.contains("\"exitCode\":7"), "{answer}");
    patiently("the end of the orphans", || {
        let children = guest.beside("/bin/cat /proc/1/task/1/children");
        children.trim().is_empty().then_some(())
    });
}

#[test]
fn privileged_pid_1_becomes_who_it_is_told_to_be_and_answers_what_the_kernel_says() {
    if !root_or_skip() {
        return;
    }
    let guest = Guest::start();
    guest.serves();
    let init = |fields: &str| -> serde_json::Value {
        fs::write(guest.root.path().join("request"), fields).unwrap();
        let answer = guest.beside(
            "/usr/bin/curl --silent --fail --max-time 60 --data-binary @/request http://127.0.0.1:49983/init",
        );
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{answer}: {error}"))
    };
    let now = || {
        let date = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output().unwrap();
        String::from_utf8(date.stdout).unwrap().trim().to_owned()
    };
    let identity = |name: &str, id: &str, entropy: &str| {
        let asked = now();
        let answer = init(&format!(
            r#"{{"hostname": "{name}", "machineId": "{id}", "timestamp": "{asked}", "entropy": "{entropy}"}}"#
        ));
        assert_eq!((&answer["hostname"], &answer["machineId"]), (&name.into(), &id.into()), "{answer}");
        assert_eq!(answer["reseeded"], !entropy.is_empty(), "{answer}");
        let clock = answer["clock"].as_str().unwrap();
        assert!(asked.as_str() <= clock && clock <= now().as_str(), "{clock}, asked at {asked}");
        assert_eq!(guest.beside("/bin/hostname"), format!("{name}\n"));
        assert_eq!(guest.beside("/bin/cat /etc/machine-id"), format!("{id}\n"));
    };
    let (first, second) = ("0123456789abcdef0123456789abcdef", "fedcba98765432100123456789abcdef");
    // 32 bytes, as the host sends, and more than one call to the kernel takes.
    let (entropy, long) = ("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "AAECAwQF".repeat(20));
    identity("one", first, entropy);
    identity("two", second, &long);
    assert_eq!(init("{}")["reseeded"], false, "what is not asked for is not done");

    // A root that is read-only: the machine id is one in memory, again and again.
    let etc = guest.root.path().join("etc");
    let script = format!("mount --bind {0} {0} && mount -o remount,bind,ro {0}", etc.display());
    let done =
        Command::new("nsenter").args(["--target", &guest.init(), "--mount", "sh", "-c", &script]).status();
    assert!(done.unwrap().success());
    identity("three", first, entropy);
    identity("four", second, "");
    assert_eq!(
        fs::read_to_string(etc.join("machine-id")).unwrap(),
        format!("{second}\n"),
        "as it was before"
    );
    let mounts = guest.beside("/bin/cat /proc/self/mounts");
    assert_eq!(mounts.matches(" /etc/machine-id ").count(), 1, "{mounts}");
}

#[test]
fn privileged_pid_1_lets_everything_end_before_the_guest_does() {
    if !root_or_skip() {
        return;
    }
    for signal in ["TERM", "INT"] {
        let mut guest = Guest::start();
        guest.serves();
        let ready = guest.root.path().join("ready");
        // Terminated, it writes to both its output and the disk; the one that ignores the signal is killed.
        let script = "(trap 'echo bye; echo written > /root/end; exit' TERM; echo > /ready; while :; do sleep 0.05; done) & \
                      (trap '' TERM; exec sleep 1000) & exit 0";
        assert!(guest.process(script).contains("\"end\""));
        patiently("the process", || ready.exists().then_some(()));
        let started = Instant::now();
        let sent = Command::new("kill").args([format!("-{signal}"), guest.init()]).status().unwrap();
        assert!(sent.success());
        let status = guest.namespace.wait().unwrap();
        assert!(!status.success(), "a restart ends a namespace's init with a signal");
        assert!(started.elapsed() < Duration::from_secs(40), "{:?}", started.elapsed());
        assert_eq!(fs::read_to_string(guest.root.path().join("root/end")).unwrap(), "written\n");
        let mut log = String::new();
        guest.namespace.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(log.contains("the guest stops") && log.contains("did not stop within"), "{log}");
    }
}

#[test]
fn privileged_pid_1_that_cannot_serve_says_so_and_restarts() {
    if !root_or_skip() {
        return;
    }
    let guest = Guest::start();
    guest.serves();
    // The port is taken in this network namespace: a second init in the same one cannot have it.
    let init = guest.init();
    let second = Command::new("nsenter")
        .args([
            "--target",
            &init,
            "--net",
            "--uts",
            "unshare",
            "--pid",
            "--fork",
            "--mount",
            "--kill-child",
            "chroot",
        ])
        .arg(guest.root.path())
        .arg("/sbin/init")
        .output()
        .unwrap();
    assert!(!second.status.success());
    let log = String::from_utf8(second.stderr).unwrap();
    assert!(log.contains("fatal: ") && log.contains("in use"), "{log}");
    assert!(Path::new(&format!("/proc/{init}")).exists());
}
