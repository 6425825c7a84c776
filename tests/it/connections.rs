//! What happens on one client connection, and what when there are too many?

use bytes::Bytes;
use http::Request;
use larder_tests::client::{self, Connection, Framing, json_request};
use larder_tests::raw::{End, Raw};
use larder_tests::world::{Engine, Proxy, chat};

const CHAT: &str = "/v1/chat/completions";

fn post(id: usize, body: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let engines = [Engine::start(&["--time-scale=20"]), Engine::start(&["--time-scale=20"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    let mut all = String::new();
    for id in 0..12 {
        // The first takes longest; streams and whole answers, the gateway's own and the engines'.
        match id % 4 {
            0 => all.push_str(&post(id, &chat("long", 100 - 8 * id as u32, false))),
            1 => all.push_str(&post(id, &chat("short", 5, true))),
            2 => all.push_str(&format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n")),
            _ => all.push_str(&post(id, "not json")),
        }
    }
    let mut client = Raw::send(proxy.address, all).await;
    for id in 0..12 {
        let (head, body) = client.answer().await.unwrap();
        assert_eq!(head.value("x-request-id"), id.to_string());
        let expected = if id % 4 == 3 { 400 } else { 200 };
        assert_eq!(head.status, expected, "{id}: {}", String::from_utf8_lossy(&body));
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn requests_of_http_2_are_answered_side_by_side() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut connection = Connection::open(proxy.address, Framing::H2Length).await;
    // A stream of 20 s, and answers beside it.
    let mut long = connection.send(json_request(CHAT, &chat("long", 1000, true))).await.unwrap();
    long.piece().await.unwrap().unwrap();
    for _ in 0..3 {
        let answer = connection.send(json_request(CHAT, &chat("short", 2, false))).await.unwrap();
        assert_eq!(answer.rest().await.unwrap().status, 200);
    }
    assert_eq!((engine.stat("running").await, engine.stat("finished").await), (1, 3));
}

#[tokio::test]
async fn close_is_kept_and_http_1_0_keeps_alive_only_when_asked() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let closing = [
        "GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "GET /x HTTP/1.0\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ];
    for request in closing {
        let mut client = Raw::send(proxy.address, request).await;
        assert_eq!(client.answer().await.unwrap().0.status, 200, "{request}");
        assert_eq!(client.to_end().await, (Vec::new(), End::Closed), "{request}");
    }
    let mut client = Raw::open(proxy.address).await;
    for _ in 0..3 {
        client.write("GET /x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
        assert_eq!(client.answer().await.unwrap().0.status, 200);
    }
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_make_room_again() {
    const OPEN: &str = "larder_client_connections";
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], "[limits]\nmax_connections = 3").await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(Raw::open(proxy.address).await);
    }
    proxy.metric_becomes(OPEN, &[], 3.0).await;
    for _ in 0..5 {
        let mut extra = Raw::open(proxy.address).await;
        // It may be closed before it has written anything.
        let _ = extra.write("GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let (answer, _) = extra.to_end().await;
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    // Those inside are served, and one that leaves makes room.
    for client in &mut held {
        client.write("GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert_eq!(client.answer().await.unwrap().0.status, 200);
    }
    held.pop();
    proxy.metric_becomes(OPEN, &[], 2.0).await;
    let request = Request::get("/x").body(Bytes::new()).unwrap();
    assert_eq!(client::send(proxy.address, request, Framing::Length).await.status, 200);
    drop(held);
    proxy.metric_becomes(OPEN, &[], 0.0).await;
}
