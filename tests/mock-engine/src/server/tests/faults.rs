use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::client::{Mock, config, read};
use crate::Config;
use crate::fault::{Fault, Kind};

const STREAM: &str = r#"{"prompt":"fault","max_tokens":30,"stream":true}"#;

/// What arrives until the connection ends, and how it ends.
async fn drain(stream: &mut TcpStream) -> (String, Option<ErrorKind>) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return (String::from_utf8(bytes).unwrap(), None),
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) => return (String::from_utf8(bytes).unwrap(), Some(error.kind())),
        }
    }
}

#[tokio::test]
async fn status_hits_the_requests_it_was_ordered_for() {
    let mock = Mock::start(config()).await;
    mock.fault(json!({"kind": "status", "status": 503, "after": 1, "count": 1})).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(mock.chat("status", 1).await.status);
    }
    assert_eq!(seen, [200, 503, 200]);
    mock.fault(json!({"kind": "status", "all_paths": true})).await;
    assert_eq!((mock.get("/health").await.status, mock.get("/debug/stats").await.status), (500, 200));
    mock.fault(json!({"kind": "none"})).await;
    assert_eq!(mock.get("/health").await.status, 200);
    assert_eq!(mock.post("/debug/fault", &json!({"kind": "typo"})).await.status, 400);
}

#[tokio::test]
async fn reset_comes_after_the_ordered_chunks() {
    let mock = Mock::start(config()).await;
    mock.fault(json!({"kind": "reset_mid_stream", "chunks": 2, "count": 1})).await;
    let (text, end) = drain(&mut mock.send("POST", "/v1/completions", "", STREAM).await).await;
    assert_eq!(end, Some(ErrorKind::ConnectionReset), "{text}");
    assert_eq!(text.matches("data: {").count(), 2, "{text}");
    mock.until("aborted", 0).await;

    mock.fault(json!({"kind": "reset_mid_stream", "chunks": 0, "count": 1})).await;
    let (text, end) = drain(&mut mock.send("POST", "/v1/completions", "", STREAM).await).await;
    assert_eq!((text.as_str(), end), ("", Some(ErrorKind::ConnectionReset)));

    mock.fault(json!({"kind": "reset_mid_stream", "count": 1})).await;
    let unstreamed = r#"{"prompt":"fault","max_tokens":30}"#;
    let (text, end) = drain(&mut mock.send("POST", "/v1/completions", "", unstreamed).await).await;
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    assert_eq!(body.len(), length.parse::<usize>().unwrap() / 2, "half of what was promised");

    let whole = mock.call("POST", "/v1/completions", "", STREAM).await;
    assert_eq!(whole.events().last(), Some(&"[DONE]"), "all is well again");
}

#[tokio::test]
async fn hang_answers_nothing_until_the_client_leaves() {
    let mock = Mock::start(config()).await;
    mock.fault(json!({"kind": "hang", "count": 2})).await;
    let mut hung = mock.send("POST", "/v1/completions", "", STREAM).await;
    let waited = tokio::time::timeout(Duration::from_millis(50), hung.read_u8()).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(mock.get("/health").await.status, 200, "probes are still answered");
    drop(hung);
    let mut hung = mock.send("POST", "/v1/completions", "", STREAM).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), hung.read_u8()).await.is_err());
    assert_eq!(mock.call("POST", "/v1/completions", "", STREAM).await.status, 200);

    mock.fault(json!({"kind": "hang", "chunks": 1, "count": 1})).await;
    let mut hung = mock.send("POST", "/v1/completions", "", STREAM).await;
    let mut text = String::new();
    while text.matches("data: {").count() < 1 || !text.ends_with("\n\n\r\n") {
        text.push(char::from(hung.read_u8().await.unwrap()));
    }
    let more = tokio::time::timeout(Duration::from_millis(100), hung.read_u8()).await;
    assert!(more.is_err(), "the connection stays open and silent, not {more:?}");
}

#[tokio::test]
async fn slow_delays_and_lie_lies() {
    let mock = Mock::start(config()).await;
    mock.fault(json!({"kind": "slow", "delay_s": 0.05, "count": 1})).await;
    let start = Instant::now();
    assert_eq!(mock.chat("slow", 1).await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(50));
    mock.fault(json!({"kind": "lie_cached", "cached_tokens": 12_345, "count": 1})).await;
    assert_eq!(mock.chat("lie", 1).await.cached_tokens(), 12_345);
    assert_eq!(mock.chat("lie", 1).await.cached_tokens(), 0, "9 tokens are no block");
}

#[tokio::test]
async fn refuse_closes_the_port_for_a_while() {
    let mock = Mock::start(config()).await;
    let mut idle = TcpStream::connect(mock.address).await.unwrap();
    mock.fault(json!({"kind": "refuse", "delay_s": 1.0})).await;
    assert_eq!(drain(&mut idle).await, (String::new(), None), "idle connections are closed");
    let refused = TcpStream::connect(mock.address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let mut tries = 0;
    while TcpStream::connect(mock.address).await.is_err() {
        tries += 1;
        assert!(tries < 2000, "the port never came back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(mock.get("/health").await.status, 200);
}

#[tokio::test]
async fn die_takes_the_server_down() {
    let mock = Mock::start(config()).await;
    mock.fault(json!({"kind": "die", "chunks": 1})).await;
    let mut cut = mock.send("POST", "/v1/completions", "", STREAM).await;
    let (text, end) = drain(&mut cut).await;
    assert_eq!(text.matches("data: {").count(), 1, "{text}");
    assert_eq!(end, Some(ErrorKind::ConnectionReset));
    mock.handle.stopped().await;
    let mut tries = 0;
    while TcpStream::connect(mock.address).await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "the listener lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_fault_can_be_there_from_the_start() {
    let fault = Fault { kind: Kind::Status, status: 429, count: Some(1), ..Fault::default() };
    let mock = Mock::start(Config { fault: Some(fault), ..config() }).await;
    assert_eq!((mock.chat("a", 1).await.status, mock.chat("a", 1).await.status), (429, 200));
}

#[tokio::test]
async fn until_ready_everything_but_debug_is_503() {
    let mock = Mock::start(Config { ready_after_s: 3600.0, ..config() }).await;
    assert_eq!((mock.get("/health").await.status, mock.chat("a", 1).await.status), (503, 503));
    assert_eq!(mock.get("/debug/stats").await.json()["ready"], false);
    let soon = Mock::start(Config { ready_after_s: 0.05, ..config() }).await;
    let mut tries = 0;
    while soon.get("/health").await.status != 200 {
        tries += 1;
        assert!(tries < 1000, "never ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn idle_connections_are_closed_busy_ones_are_not() {
    // 30 tokens take 0.6 s, many times the idle limit.
    let mock = Mock::start(Config { keep_alive_s: 0.05, time_scale: 1.0, ..config() }).await;
    let answer = read(&mut mock.send("POST", "/v1/completions", "", STREAM).await).await.unwrap();
    assert_eq!(
        answer.events().last(),
        Some(&"[DONE]"),
        "read to the end of a connection closed by the server"
    );
}
