//! The guest: it counts, and its agent answers on the network. It knows a few words instead of a shell:
//!
//! - `kept=WORD; …` keeps WORD in memory and on the disk; `… cat /mem/kept /kept` tells both;
//! - `cat /mem/count/now` tells the count;
//! - `sleep …` says nothing for ever.
//!
//! Any other command succeeds. The file `/endless` has no end, and what is uploaded to it is never read.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::Machine;

/// Where a slot sends what comes for its guest.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
const PORT: u16 = 49983;

/// How often the guest counts on.
const TICK: Duration = Duration::from_millis(2);

pub fn start(machine: &Arc<Machine>) {
    // There is no tap device's other end here: the guest's address is one of the namespace's own.
    let added = Command::new("ip")
        .args(["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .status();
    assert!(added.is_ok_and(|status| status.success()), "the guest's address");
    let listener = TcpListener::bind((ADDRESS, PORT)).expect("the agent's port");
    let counting = machine.clone();
    thread::spawn(move || {
        loop {
            counting.running().tick();
            thread::sleep(TICK);
        }
    });
    let machine = machine.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let machine = machine.clone();
            // Who hangs up in the middle of it has had enough.
            thread::spawn(move || drop(serve(&machine, stream)));
        }
    });
}

/// One request; the end of the connection is the end of the answer.
fn serve(machine: &Machine, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    drop(machine.running());
    let path = head[0].split(' ').nth(1).unwrap_or_default().to_owned();
    let ok = |more: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{more}\r\n");
    match path.as_str() {
        "/init" => {
            let asked: Value = serde_json::from_slice(&body(&head, &mut reader)?)?;
            let told = json!({"hostname": asked["hostname"], "machineId": asked["machineId"],
                              "clock": asked["timestamp"], "reseeded": true});
            write!(stream, "{}{told}", ok("Content-Type: application/json\r\n"))
        }
        "/process.Process/Start" => {
            let body = body(&head, &mut reader)?;
            let asked: Value = serde_json::from_slice(body.get(5..).unwrap_or_default())?;
            stream.write_all(ok("Content-Type: application/connect+json\r\n").as_bytes())?;
            command(machine, &mut stream, &asked["process"])
        }
        "/process.Process/SendSignal" => write!(stream, "{}{{}}", ok("")),
        path if path.starts_with("/files?path=/endless") && head[0].starts_with("GET") => {
            stream.write_all(ok("Content-Length: 1000000000\r\n").as_bytes())?;
            loop {
                drop(machine.running());
                stream.write_all(b"on and on\n")?;
                thread::sleep(TICK);
            }
        }
        path if path.starts_with("/files?path=/endless") => loop {
            thread::park();
        },
        _ => {
            body(&head, &mut reader)?;
            write!(stream, "{}{}", ok("Content-Type: application/json\r\n"), json!({"version": "toy"}))
        }
    }
}

fn body(head: &[String], reader: &mut impl BufRead) -> std::io::Result<Vec<u8>> {
    let header = |name: &str| {
        head.iter().find_map(|line| {
            line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        })
    };
    let mut body = Vec::new();
    if let Some(length) = header("content-length").and_then(|length| length.parse().ok()) {
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
    } else if header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; length + 2];
            reader.read_exact(&mut chunk)?;
            if length == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..length]);
        }
    }
    Ok(body)
}

fn command(machine: &Machine, stream: &mut TcpStream, process: &Value) -> std::io::Result<()> {
    let words: Vec<&str> =
        process["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let script = words.last().copied().unwrap_or_default();
    send(stream, 0, &json!({"event": {"start": {"pid": 7}}}))?;
    let output = {
        let mut inner = machine.running();
        if let Some(rest) = script.strip_prefix("kept=") {
            inner.keep(rest.split(';').next().unwrap_or_default());
            String::new()
        } else if script.ends_with("cat /mem/kept /kept") {
            inner.kept().map(|line| line + "\n").concat()
        } else if script == "cat /mem/count/now" {
            format!("{}\n", inner.count())
        } else {
            String::new()
        }
    };
    if process["cmd"] == "sleep" {
        loop {
            thread::park();
        }
    }
    drop(machine.running());
    if !output.is_empty() {
        send(stream, 0, &json!({"event": {"data": {"stdout": base64(output.as_bytes())}}}))?;
    }
    send(stream, 0, &json!({"event": {"end": {"exitCode": 0, "exited": true, "status": "exit status 0"}}}))?;
    send(stream, 2, &json!({}))
}

fn send(stream: &mut TcpStream, flags: u8, message: &Value) -> std::io::Result<()> {
    let text = message.to_string();
    let mut bytes = vec![flags];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.into_bytes());
    stream.write_all(&bytes)
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = |chunk: &[u8]| {
        let all =
            chunk.iter().enumerate().fold(0u32, |all, (at, byte)| all | u32::from(*byte) << (16 - 8 * at));
        let letter = |at: usize| match at <= chunk.len() {
            true => char::from(LETTERS[(all >> (18 - 6 * at)) as usize & 63]),
            false => '=',
        };
        (0..4).map(letter).collect::<String>()
    };
    bytes.chunks(3).map(group).collect()
}
