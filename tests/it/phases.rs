//! Clients that break off, drip, or never read, and engines that answer at the wrong time: in each phase the outcome is
//! one that can be stated, and nothing stays behind.

use std::time::Duration;

use larder_tests::client::{self, Framing, json_request};
use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy, chat, config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const CHAT: &str = "/v1/chat/completions";
const CONNECTIONS: &str = "larder_client_connections";

fn whole(body: &str) -> String {
    format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// RST, not FIN: what a killed client or a broken line looks like.
fn cut(client: Raw) {
    client.stream.set_zero_linger().unwrap();
    drop(client);
}

#[tokio::test]
async fn a_reset_in_any_phase_leaves_nothing_behind() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    let request = whole(&chat("hello", 1_000, true));
    let head = request.find("\r\n\r\n").unwrap();
    for _ in 0..5 {
        // Before a byte; within the request line, the fields, the empty line, the body; before the answer.
        for sent in [0, 5, head - 4, head + 2, head + 4, head + 20, request.len() - 1, request.len()] {
            cut(Raw::send(proxy.address, &request[..sent]).await);
        }
        let chunked =
            format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel");
        cut(Raw::send(proxy.address, chunked).await);
        // Within the answer's head and its body; and with a second request behind it.
        let mut client = Raw::send(proxy.address, &request).await;
        client.head().await.unwrap();
        cut(client);
        let mut client = Raw::send(proxy.address, &request).await;
        client.head().await.unwrap();
        client.chunk().await.unwrap();
        cut(client);
        cut(Raw::send(proxy.address, format!("{request}{request}")).await);
    }
    proxy.becomes_idle().await;
    proxy.metric_becomes(CONNECTIONS, &[], 0.0).await;
    for _ in 0..500 {
        if engine.stat("running").await == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.stat("running").await, 0, "the engine works for nobody");
    assert_eq!(client::chat(proxy.address, &chat("hello", 2, false)).await.status, 200);
}

#[tokio::test]
async fn a_body_that_drips_is_given_up_like_one_that_stops() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "[timeouts]\nbody = \"500ms\"").await;
    let request = whole(&chat("hello", 5, false));
    let head = request.find("\r\n\r\n").unwrap() + 4;
    let mut client = Raw::send(proxy.address, &request[..head]).await;
    for byte in request[head..].bytes() {
        if client.write([byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.answer().await.unwrap().0.status, 408);
    assert!(engine.requests().await.is_empty(), "nothing of it was sent on");
    proxy.becomes_idle().await;
}

/// A client that asks and never reads: the answer waits in its engine, not in the gateway, and nobody else waits.
#[tokio::test]
async fn a_client_that_never_reads_costs_a_buffer_and_no_more() {
    const READERS: usize = 8;
    // Each answer would be more than 100 MB.
    let engine = Engine::start(&["--time-scale=100000", "--kv-tokens=8000000", "--decode-step-s=0.02"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let before = proxy.program.resident_bytes();
    let mut deaf = Vec::new();
    for _ in 0..READERS {
        let client = Raw::send(proxy.address, whole(&chat("hello", 500_000, true))).await;
        client.stream.readable().await.unwrap();
        deaf.push(client);
    }
    for _ in 0..20 {
        assert_eq!(client::chat(proxy.address, &chat("hello", 5, false)).await.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let growth = proxy.program.resident_bytes().saturating_sub(before);
    assert!(growth < (READERS as u64) * (2 << 20) + (8 << 20), "{growth} bytes more resident");
    assert!(proxy.metric("larder_in_flight_requests", &[]).await >= 1.0, "they still run");
    drop(deaf);
    proxy.becomes_idle().await;
    proxy.metric_becomes(CONNECTIONS, &[], 0.0).await;
}

/// An engine that answers at the head and never reads the body, as one that refuses does.
async fn hasty(answer: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1];
                if stream.read_exact(&mut head).await.is_ok() && head == *b"G" {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
                } else {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
                // It neither reads nor closes.
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn an_engine_that_answers_before_it_reads_is_heard() {
    let engine = hasty("HTTP/1.1 413 Payload Too Large\r\ncontent-length: 5\r\n\r\nlarge").await;
    let proxy = Proxy::start_with(&config(&[engine], "[health]\ninterval = \"1h\"")).await;
    for framing in Framing::ALL {
        // More than the buffers of both sockets take.
        let body = chat(&"x".repeat(20_000_000), 5, false);
        let answer = client::send(proxy.address, json_request(CHAT, &body), framing).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (413, "large"), "{framing:?}");
    }
    proxy.becomes_idle().await;
}

/// HTTP/2 has lengths beside its own framing too (RFC 9113, section 8.1.1), and fields of HTTP/1.1 that must not come.
#[tokio::test]
async fn what_http_2_forbids_never_reaches_an_engine() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    type Fields = &'static [(&'static str, &'static str)];
    let requests: [(&str, Fields); 7] = [
        ("a length too small", &[("content-length", "3")]),
        ("a length too large", &[("content-length", "9")]),
        ("two lengths", &[("content-length", "5"), ("content-length", "6")]),
        ("a coding", &[("transfer-encoding", "chunked")]),
        ("a connection", &[("connection", "x")]),
        ("a line break", &[("x-a", "b\r\nx-c: d")]),
        ("a capital", &[("X-A", "b")]),
    ];
    for (what, fields) in requests {
        let mut client = Raw::send(proxy.address, h2_post(fields, "hello")).await;
        let _ = client.stream.shutdown().await;
        let (answer, _) = client.to_end().await;
        assert!(!answer.windows(5).any(|w| w == b"hello"), "{what}: {answer:?}");
    }
    assert!(engine.requests().await.is_empty(), "{:?}", engine.requests().await);
    // The negative control: such a request passes when nothing is wrong with it.
    let mut client =
        Raw::send(proxy.address, h2_post(&[("content-length", "5"), ("x-a", "b")], "hello")).await;
    for _ in 0..500 {
        if !engine.requests().await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.last().await["body_bytes"], 5);
    client.stream.shutdown().await.unwrap();
    proxy.becomes_idle().await;
}

/// The frames of `POST /` with these fields as literals (RFC 7541, section 6.2.2) and one DATA frame.
fn h2_post(fields: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut block = b"\x83\x84\x86\x01\x01x".to_vec();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    frames.extend_from_slice(&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 1]);
    frames.extend_from_slice(&block);
    frames.extend_from_slice(&[0, 0, body.len() as u8, 0, 1, 0, 0, 0, 1]);
    frames.extend_from_slice(body.as_bytes());
    frames
}
