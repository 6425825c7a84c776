//! When a client leaves, does the engine stop and is the load released, whatever the client was waiting for?

use std::time::Duration;

use larder_tests::client::{self, Connection, Framing, json_request};
use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy, chat};
use tokio::io::AsyncWriteExt;

const CHAT: &str = "/v1/chat/completions";
const ABORTS: &str = "larder_client_aborts_total";

/// An answer of 20 s.
fn long(stream: bool) -> String {
    chat("tell me everything", 1000, stream)
}

fn raw_chat(body: &str) -> String {
    format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    for (n, framing) in (1..).zip(Framing::ALL) {
        let mut stream = client::open(proxy.address, json_request(CHAT, &long(true)), framing).await;
        stream.piece().await.unwrap().unwrap();
        assert_eq!(proxy.metric("larder_in_flight_requests", &[]).await, 1.0, "{framing:?}");
        drop(stream);
        engine.stat_reaches("aborted", n).await;
        proxy.becomes_idle().await;
        assert_eq!(proxy.metric(ABORTS, &[]).await, n as f64, "{framing:?}");
    }
    assert_eq!(engine.stat("finished").await, 0);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    for (n, framing) in (1..).zip(Framing::ALL) {
        let asking = tokio::spawn(client::try_send(proxy.address, json_request(CHAT, &long(false)), framing));
        proxy.metric_becomes("larder_in_flight_requests", &[], 1.0).await;
        engine.stat_reaches("running", 1).await;
        asking.abort();
        engine.stat_reaches("aborted", n).await;
        proxy.becomes_idle().await;
        assert_eq!(proxy.metric(ABORTS, &[]).await, n as f64, "{framing:?}");
    }
}

#[tokio::test]
async fn a_client_that_is_cut_off() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    for (n, stream) in [(1, true), (2, false)] {
        let client = Raw::send(proxy.address, raw_chat(&long(stream))).await;
        engine.stat_reaches("running", 1).await;
        // Closing sends RST.
        client.stream.set_zero_linger().unwrap();
        drop(client);
        engine.stat_reaches("aborted", n).await;
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn one_stream_of_a_connection_is_left_and_the_others_go_on() {
    let engine = Engine::start(&["--decode-step-s=0.005"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut connection = Connection::open(proxy.address, Framing::H2Length).await;
    let mut left = connection.send(json_request(CHAT, &chat("left", 10_000, true))).await.unwrap();
    let kept = connection.send(json_request(CHAT, &chat("kept", 50, true))).await.unwrap();
    left.piece().await.unwrap().unwrap();
    drop(left);
    assert!(kept.rest().await.unwrap().text().ends_with("data: [DONE]\n\n"));
    engine.stat_reaches("aborted", 1).await;
    let after = connection.send(json_request(CHAT, &chat("after", 5, false))).await.unwrap();
    assert_eq!(after.rest().await.unwrap().status, 200);
    proxy.becomes_idle().await;
    assert_eq!((engine.stat("finished").await, engine.stat("aborted").await), (2, 1));
}

/// A client that closes its half of the connection counts as gone, before and during the answer: a half-closed
/// connection looks just like one whose client has died, and an engine must not work for those.
#[tokio::test]
async fn a_half_closed_client_counts_as_gone() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    for (n, stream) in [(1, false), (2, true)] {
        let mut client = Raw::send(proxy.address, raw_chat(&long(stream))).await;
        if stream {
            assert_eq!(client.head().await.unwrap().status, 200);
            assert!(client.chunk().await.unwrap().is_some());
        } else {
            engine.stat_reaches("running", 1).await;
        }
        client.stream.shutdown().await.unwrap();
        let (rest, _) = client.to_end().await;
        let rest = String::from_utf8_lossy(&rest);
        assert!(!rest.contains("HTTP/1.1 200") && !rest.ends_with("0\r\n\r\n"), "no clean end: {rest}");
        engine.stat_reaches("aborted", n).await;
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_its_engine_hangs() {
    let engine = Engine::start(&[]);
    engine.fault(serde_json::json!({"kind": "hang"})).await;
    let proxy = Proxy::start(&[&engine], "").await;
    for framing in Framing::ALL {
        let asking = tokio::spawn(client::try_send(proxy.address, json_request(CHAT, &long(true)), framing));
        proxy.metric_becomes("larder_in_flight_requests", &[], 1.0).await;
        asking.abort();
        proxy.becomes_idle().await;
    }
    engine.fault(serde_json::json!({"kind": "hang", "chunks": 2})).await;
    let mut stream = client::open(proxy.address, json_request(CHAT, &long(true)), Framing::Length).await;
    stream.piece().await.unwrap().unwrap();
    drop(stream);
    proxy.becomes_idle().await;
    assert_eq!(proxy.metric(ABORTS, &[]).await, 5.0);
}

/// The negative control: a client that reads to the end is no abort, however slowly it reads.
#[tokio::test]
async fn a_slow_reader_is_no_abort() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut stream =
        client::open(proxy.address, json_request(CHAT, &chat("hello", 3000, true)), Framing::Length).await;
    let mut text = Vec::new();
    while let Some(piece) = stream.piece().await {
        text.extend_from_slice(&piece.unwrap());
        if text.len() < 20_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(text.ends_with(b"data: [DONE]\n\n"));
    proxy.becomes_idle().await;
    assert_eq!((proxy.metric(ABORTS, &[]).await, engine.stat("aborted").await), (0.0, 0));
}
