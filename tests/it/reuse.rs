//! Are connections to engines reused, replaced when they went stale, and is nothing sent twice?

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use larder_tests::client::{self, Framing};
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Engine, Proxy, chat, config};

fn numbered(n: usize) -> Request<Bytes> {
    Request::post(format!("/n/{n}")).body(Bytes::from(format!("body {n}"))).unwrap()
}

fn paths(engine: &Scripted) -> Vec<String> {
    engine.seen().iter().map(|seen| seen.head.split(' ').nth(1).unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn one_connection_serves_one_request_after_the_other() {
    let engine = Scripted::start(|_| (ok("fine"), Then::Next)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let before = engine.connections();
    for n in 0..20 {
        assert_eq!(client::send(proxy.address, numbered(n), Framing::ALL[n % 4]).await.text(), "fine");
    }
    assert_eq!(paths(&engine), (0..20).map(|n| format!("/n/{n}")).collect::<Vec<_>>());
    let connection = engine.last().connection;
    assert!(engine.seen().iter().all(|seen| seen.connection == connection), "one connection for all");
    assert!(engine.connections() <= before + 2, "health checks have one of their own, which may be remade");
}

#[tokio::test]
async fn connections_that_went_stale_are_replaced_and_nothing_is_sent_twice() {
    // Says nothing of closing, and closes: what an idle limit on the engine's side looks like.
    let engine = Scripted::start(|_| (ok("fine"), Then::Close)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for n in 0..60 {
        let answer = client::send(proxy.address, numbered(n), Framing::ALL[n % 4]).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, "fine".to_owned()), "request {n}");
        // A request that crosses the close on its way may have been taken, and is not repeated: see
        // `a_request_that_was_taken_and_dropped_is_not_sent_again`.
        engine.closed(n + 1).await;
    }
    assert_eq!(paths(&engine), (0..60).map(|n| format!("/n/{n}")).collect::<Vec<_>>());
    assert!(engine.seen().iter().all(|seen| {
        seen.body
            == seen
                .head
                .replace("POST /n/", "body ")
                .split(' ')
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
                .as_bytes()
    }));
    assert_eq!(proxy.metric("larder_upstream_errors_total", &[]).await, 0.0);
    proxy.becomes_idle().await;
}

/// llama.cpp's server closes each connection after a stream and says the opposite (`Keep-Alive: timeout=5, max=100`).
/// A request that comes at once must not meet the closing connection.
#[tokio::test]
async fn an_engine_that_closes_after_each_stream_unannounced_loses_no_request() {
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\
                  keep-alive: timeout=5, max=100\r\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    let engine = Scripted::start(move |_| (stream.as_bytes().to_vec(), Then::CloseSoon)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for n in 0..40 {
        let answer = client::send(proxy.address, numbered(n), Framing::Length).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text()),
            (200, "data: [DONE]\n\n".to_owned()),
            "request {n}"
        );
    }
    assert_eq!(paths(&engine), (0..40).map(|n| format!("/n/{n}")).collect::<Vec<_>>(), "each once");
    proxy.becomes_idle().await;
}

/// The negative control: engines that keep such connections have them used again.
#[tokio::test]
async fn an_engine_that_keeps_connections_after_streams_has_them_used() {
    let stream = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                  e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    let engine = Scripted::start(move |_| (stream.as_bytes().to_vec(), Then::Next)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for n in 0..10 {
        client::send(proxy.address, numbered(n), Framing::Length).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let connections: std::collections::HashSet<_> =
        engine.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections.len(), 1, "{connections:?}");
}

#[tokio::test]
async fn an_engine_that_keeps_connections_for_a_moment_only_is_no_trouble() {
    let engine = Engine::start(&["--time-scale=1000", "--keep-alive-s=0.05"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for n in 0..4 {
        let body = chat(&format!("number {n}"), 2, n % 2 == 0);
        assert_eq!(client::chat(proxy.address, &body).await.status, 200);
        // Long enough for the engine to close; where it takes longer, the connection is simply used again.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(engine.requests().await.len(), 4);
    assert_eq!(proxy.metric("larder_upstream_errors_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_engine_that_announces_a_close_is_believed() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfine";
    let engine = Scripted::start(move |_| (answer.as_bytes().to_vec(), Then::Close)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    for n in 0..20 {
        let answer = client::send(proxy.address, numbered(n), Framing::Length).await;
        assert_eq!((answer.status.as_u16(), answer.header("connection")), (200, ""));
    }
    assert!(engine.seen().iter().all(|seen| seen.place == 0), "one request a connection");
}

#[tokio::test]
async fn keeping_none_is_possible() {
    let engine = Scripted::start(|_| (ok("fine"), Then::Next)).await;
    let proxy =
        Proxy::start_with(&config(&[engine.address], "[limits]\nupstream_idle_per_endpoint = 0")).await;
    for n in 0..5 {
        assert_eq!(client::send(proxy.address, numbered(n), Framing::Length).await.text(), "fine");
    }
    assert!(engine.seen().iter().all(|seen| seen.place == 0), "one request a connection");
}

/// A POST that an engine took and dropped may have been worked on: the client decides about asking again.
#[tokio::test]
async fn a_request_that_was_taken_and_dropped_is_not_sent_again() {
    let engine = Scripted::start(|seen| {
        if seen.head.starts_with("POST /n/0 ") { (ok("fine"), Then::Next) } else { (Vec::new(), Then::Close) }
    })
    .await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    // The second goes over the connection that the first left.
    for (n, status) in [(0, 200), (1, 502), (2, 502)] {
        assert_eq!(client::send(proxy.address, numbered(n), Framing::Length).await.status, status);
    }
    assert_eq!(paths(&engine), ["/n/0", "/n/1", "/n/2"]);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn an_answer_left_in_the_middle_does_not_leak_into_the_next() {
    let engine = Engine::start(&["--decode-step-s=0.001"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for n in 0..10 {
        let framing = Framing::ALL[n % 4];
        let request = client::json_request("/v1/chat/completions", &chat("left", 5000, true));
        let mut left = client::open(proxy.address, request, framing).await;
        left.piece().await.unwrap().unwrap();
        drop(left);
        let body = chat(&format!("number {n}"), 12, false);
        let answer = client::chat(proxy.address, &body).await.json();
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        let name = format!("req-{:016x} ", xxhash_rust::xxh3::xxh3_64(body.as_bytes()));
        assert!(text.starts_with(&name), "{text} is not the answer to {name}");
    }
    engine.stat_reaches("aborted", 10).await;
    proxy.becomes_idle().await;
}
