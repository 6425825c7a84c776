//! Do all bodies together stay within their budget, and does it come back whatever happens?

use bytes::Bytes;
use http::Request;
use larder_tests::client::{self, Framing};
use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy};

use crate::limits::assert_refusal;

const LIMITS: &str = "[limits]\nmax_body = \"1MiB\"\nmax_buffered = \"1MiB\"";
const HELD: &str = "larder_buffered_body_bytes";

fn head(length: usize) -> String {
    format!("PUT /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
}

fn put(bytes: usize) -> Request<Bytes> {
    Request::put("/echo").body(Bytes::from(vec![b'x'; bytes])).unwrap()
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_told_when_to_come_again() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    // A body under way holds what it has claimed.
    let mut first = Raw::send(proxy.address, head(1_000_000)).await;
    first.write(vec![b'a'; 500_000]).await.unwrap();
    proxy.metric_becomes(HELD, &[], 1_000_000.0).await;
    for framing in Framing::ALL {
        let answer = client::send(proxy.address, put(200_000), framing).await;
        assert_refusal(&answer, 429, "body_budget_exhausted");
        assert_eq!(answer.header("retry-after"), "1", "{framing:?}");
        // A small one still fits.
        assert_eq!(client::send(proxy.address, put(10_000), framing).await.status, 200, "{framing:?}");
    }
    first.write(vec![b'a'; 500_000]).await.unwrap();
    assert_eq!(first.answer().await.unwrap().0.status, 200);
    proxy.becomes_idle().await;
    assert_eq!(client::send(proxy.address, put(1_000_000), Framing::Chunked).await.status, 200);
}

#[tokio::test]
async fn a_body_that_breaks_off_gives_its_share_back() {
    let engine = Engine::start(&["--echo-unknown"]);
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    let mut first = Raw::send(proxy.address, head(1_000_000)).await;
    first.write(vec![b'a'; 500_000]).await.unwrap();
    let chunked = "PUT /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n100\r\nabc";
    let second = Raw::send(proxy.address, chunked).await;
    proxy.metric_becomes(HELD, &[], 1_000_003.0).await;
    drop((first, second));
    proxy.becomes_idle().await;
    assert_eq!(client::send(proxy.address, put(1_000_000), Framing::Length).await.status, 200);
}

#[tokio::test]
async fn a_body_is_held_until_the_engine_answers_and_not_longer() {
    let engine = Engine::start(&["--decode-step-s=0.05"]);
    engine.fault(serde_json::json!({"kind": "slow", "delay_s": 0.5, "count": 1})).await;
    let proxy = Proxy::start(&[&engine], LIMITS).await;
    let body = larder_tests::world::chat("hello", 1000, true);
    let length = body.len() as f64;
    let request = client::json_request("/v1/chat/completions", &body);
    let opening = tokio::spawn(client::open(proxy.address, request, Framing::Length));
    proxy.metric_becomes(HELD, &[], length).await;
    let mut stream = opening.await.unwrap();
    stream.piece().await.unwrap().unwrap();
    proxy.metric_becomes(HELD, &[], 0.0).await;
    assert!(proxy.metric("larder_in_flight_requests", &[]).await > 0.0, "the stream still runs");
    drop(stream);
    proxy.becomes_idle().await;
}
