//! The binary as other tests and benchmarks use it.
#![expect(clippy::unwrap_used, reason = "clippy allows it in test functions, not in their helpers")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Process {
    child: Child,
    address: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended in most tests; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-mock-engine"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn start(arguments: &[&str]) -> Process {
    let mut child = command(&[&["--listen", "127.0.0.1:0"], arguments].concat()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("listening on http://").unwrap().to_owned();
    Process { child, address }
}

fn post(address: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn serves_and_ends_on_sigterm() {
    let mut process = start(&["--model", "m", "--time-scale", "1000"]);
    let answer = post(&process.address, "/v1/completions", r#"{"prompt":"hello","max_tokens":20}"#).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("req-"), "{answer}");
    let pid = process.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

#[test]
fn dies_on_order_without_an_answer() {
    let mut process = start(&["--fault", r#"{"kind":"die","after":1}"#]);
    assert!(post(&process.address, "/tokenize", r#"{"prompt":"a"}"#).unwrap().starts_with("HTTP/1.1 200"));
    let cut = post(&process.address, "/tokenize", r#"{"prompt":"a"}"#);
    assert!(cut.as_ref().map_or(true, String::is_empty), "{cut:?}");
    assert_eq!(process.child.wait().unwrap().code(), Some(1));
}

#[test]
fn bad_settings_end_with_a_reason() {
    let output = command(&["--listen", "127.0.0.1:0", "--bytes-per-token", "0.3"]).output().unwrap();
    let reason = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{reason}");
    assert!(reason.contains("bytes-per-token as a multiple of 1/16"), "{reason}");
    assert!(output.stdout.is_empty());
}
