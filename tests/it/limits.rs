//! Are the limits of one body and one head kept, and is the refusal readable?

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use larder_tests::client::{self, Answer, Framing};
use larder_tests::raw::Raw;
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Engine, Proxy, config};

const LIMIT: usize = 64 << 10;
const LIMITS: &str = "[limits]\nmax_body = \"64KiB\"";

fn put(bytes: usize) -> Request<Bytes> {
    Request::put("/echo").body(Bytes::from(vec![b'x'; bytes])).unwrap()
}

/// Every refusal has the shape of OpenAI's errors.
pub(crate) fn assert_refusal(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert_eq!(answer.header("content-type"), "application/json");
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    assert!(error["type"].is_string(), "{error}");
    assert_eq!(error["code"], code, "{error}");
    assert!(error.get("param").is_some(), "{error}");
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    for framing in Framing::ALL {
        let answer = client::send(proxy.address, put(LIMIT), framing).await;
        assert_eq!(answer.status, StatusCode::OK, "{framing:?}: {}", answer.text());
        assert_eq!(answer.header("x-mock-body-bytes"), LIMIT.to_string(), "{framing:?}");
        let answer = client::send(proxy.address, put(LIMIT + 1), framing).await;
        assert_refusal(&answer, 413, "body_too_large");
        assert!(answer.text().contains(&LIMIT.to_string()), "the limit is named: {}", answer.text());
    }
    assert_eq!(engine.stat("max_body_bytes").await, LIMIT as u64, "nothing larger reached the engine");
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn the_connection_serves_on_after_a_refused_body() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    for framing in [Framing::H2Length, Framing::H2] {
        let mut connection = client::Connection::open(proxy.address, framing).await;
        for _ in 0..3 {
            let refused = connection.send(put(3 * LIMIT)).await.unwrap().rest().await.unwrap();
            assert_refusal(&refused, 413, "body_too_large");
            assert_eq!(connection.send(put(10)).await.unwrap().rest().await.unwrap().status, 200);
        }
    }
}

#[tokio::test]
async fn a_client_in_the_middle_of_100_mb_can_read_the_refusal() {
    const SENT: usize = 100_000_000;
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    for framing in Framing::ALL {
        let answer = client::send(proxy.address, put(SENT), framing).await;
        assert_refusal(&answer, 413, "body_too_large");
    }
    // Negative control of what was sent: nothing of it was held.
    proxy.becomes_idle().await;
    assert_eq!(engine.stat("max_body_bytes").await, 0);
    let memory = proxy.program.resident_bytes();
    assert!(memory < 80 << 20, "{memory} bytes resident after 4 x 100 MB refused");
}

#[tokio::test]
async fn a_body_of_100_mb_passes_whole_where_it_may() {
    const SENT: usize = 100_000_000;
    let engine = Scripted::start(|_| (ok("fine"), Then::Next)).await;
    let limits = "[limits]\nmax_body = \"128MiB\"\nmax_buffered = \"256MiB\"\n";
    let proxy = Proxy::start_with(&config(&[engine.address], limits)).await;
    for framing in [Framing::Length, Framing::H2] {
        let answer = client::send(proxy.address, put(SENT), framing).await;
        assert_eq!(answer.status, 200, "{framing:?}: {}", answer.text());
        let seen = engine.last();
        assert_eq!(seen.values("content-length"), [SENT.to_string()], "{framing:?}");
        assert!(seen.body == vec![b'x'; SENT], "{framing:?}: another body");
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn a_client_that_only_reads_after_it_has_sent_all_can_read_the_refusal() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    let head = "PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\n\r\n";
    let mut client = Raw::send(proxy.address, head).await;
    let piece = vec![b'x'; 1_000_000];
    for _ in 0..30 {
        client.write(&piece).await.expect("the rest is read and thrown away");
    }
    assert_eq!(client.answer().await.unwrap().0.status, 413);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "[timeouts]\nbody = \"200ms\"").await;
    let mut client =
        Raw::send(proxy.address, "PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc").await;
    let (head, body) = client.answer().await.unwrap();
    assert_eq!(head.status, 408, "{}", String::from_utf8_lossy(&body));
    proxy.becomes_idle().await;
    assert!(engine.requests().await.is_empty());
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "[limits]\nmax_header = \"16KiB\"").await;
    let head = |bytes| format!("GET /echo HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "a".repeat(bytes));
    assert_eq!(Raw::send(proxy.address, head(10_000)).await.head().await.unwrap().status, 200);
    let requests = engine.last().await;
    assert_eq!(Raw::send(proxy.address, head(20_000)).await.head().await.unwrap().status, 431);
    assert_eq!(engine.last().await, requests, "it was not sent on");
}

#[tokio::test]
async fn slow_heads_and_idle_connections_are_closed_but_not_slow_answers() {
    let engine = Engine::start(&[]);
    engine.fault(serde_json::json!({"kind": "slow", "delay_s": 1.0})).await;
    let proxy = Proxy::start(&[&engine], "[timeouts]\nheader = \"200ms\"\nkeepalive = \"300ms\"").await;
    let mut slow = Raw::send(proxy.address, "GET /v1/mod").await;
    let mut idle = Raw::open(proxy.address).await;
    let body = larder_tests::world::chat("hello", 2, false);
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut waiting = Raw::send(proxy.address, request).await;
    let (slow_end, idle_end) = (slow.to_end().await, idle.to_end().await);
    assert!(slow_end.0.is_empty() || slow_end.0.starts_with(b"HTTP/1.1 408"), "{slow_end:?}");
    assert!(idle_end.0.is_empty(), "{idle_end:?}");
    // Three times as long as both limits.
    assert_eq!(waiting.answer().await.unwrap().0.status, 200);
    tokio::time::timeout(Duration::from_secs(20), waiting.to_end()).await.expect("idle again, it is closed");
}
