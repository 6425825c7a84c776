//! Does a client that asks before it sends a body get its go-ahead, and the engine never hear of it?

use std::time::Duration;

use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy, chat, logged_values, prose};

fn asking(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: larder\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
    )
}

#[tokio::test]
async fn the_go_ahead_comes_before_the_body() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(100_000, 1), 2, false);
    let mut client = Raw::send(proxy.address, asking("/v1/chat/completions", body.len())).await;
    let first = client.head().await.unwrap();
    assert_eq!(first.status, 100, "{}", first.text);
    assert_eq!(engine.requests().await.len(), 0, "nothing is sent on before the body is whole");
    client.write(&body).await.unwrap();
    let (head, answer) = client.answer().await.unwrap();
    assert_eq!(head.status, 200, "{}", String::from_utf8_lossy(&answer));
    let seen = engine.last().await;
    assert_eq!(seen["body_bytes"], body.len());
    for name in ["expect", "transfer-encoding"] {
        assert!(logged_values(&seen, name).is_empty(), "{seen}");
    }
    // The connection goes on.
    client.write(asking("/v1/chat/completions", body.len())).await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 100);
    client.write(&body).await.unwrap();
    assert_eq!(client.answer().await.unwrap().0.status, 200);
}

#[tokio::test]
async fn chunked_bodies_are_waited_for_too() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let head = "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-Continue\r\n\r\n";
    let mut client = Raw::send(proxy.address, head).await;
    assert_eq!(client.head().await.unwrap().status, 100);
    client.write("3\r\nabc\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.unwrap().0.status, 200);
    assert_eq!(engine.last().await["framing"], "content-length");
}

#[tokio::test]
async fn a_body_that_is_too_large_gets_no_go_ahead() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "[limits]\nmax_body = \"64KiB\"").await;
    let mut client = Raw::send(proxy.address, asking("/v1/chat/completions", 70_000)).await;
    let first = client.head().await.unwrap();
    assert_eq!(first.status, 413, "{}", first.text);
}

#[tokio::test]
async fn http_1_0_gets_none() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let head = "POST /echo HTTP/1.0\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n";
    let mut client = Raw::send(proxy.address, head).await;
    assert!(client.is_silent(Duration::from_millis(200)).await);
    client.write("abc").await.unwrap();
    assert_eq!(client.head().await.unwrap().status, 200);
}
