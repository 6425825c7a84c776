//! Does a body reach the engine byte for byte, whatever its size and framing?

use bytes::Bytes;
use http::{Method, Request, header};
use larder_tests::client::{self, Answer, Framing};
use larder_tests::raw;
use larder_tests::world::{Engine, Proxy, chat, logged_values};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

/// Around pingora's and hyper's buffer sizes, and the sizes of long prompts.
const SIZES: [usize; 7] = [1, 65_535, 65_536, 65_537, 400_000, 4_200_000, 20_000_000];

/// An engine that takes 20 MB prompts and answers at once.
fn engine() -> Engine {
    Engine::start(&[
        "--echo-unknown",
        "--kv-tokens=2000000",
        "--bytes-per-token=64",
        "--max-batched-tokens=2000000",
        "--prefill-tokens-per-s=1e9",
        "--time-scale=1e6",
    ])
}

/// `bytes` bytes in which every position shows: a shift, a lost or a doubled piece changes the hash.
fn noise(bytes: usize) -> Bytes {
    let words = (0..bytes as u64).step_by(8).flat_map(|n| xxh3_64(&n.to_le_bytes()).to_le_bytes());
    words.take(bytes).collect()
}

/// A chat body of exactly `bytes` bytes; below the smallest possible, garbage.
fn chat_of_size(bytes: usize) -> Bytes {
    let empty = chat("", 1, false);
    if bytes < empty.len() {
        return noise(bytes);
    }
    let filler: String =
        "abcdefghijklmnopqrstuvwxyz 0123456789 ".chars().cycle().take(bytes - empty.len()).collect();
    let body = chat(&filler, 1, false);
    assert_eq!(body.len(), bytes);
    body.into()
}

fn assert_intact(answer: &Answer, body: &Bytes, what: &str) {
    let sent = (body.len().to_string(), format!("{:016x}", xxh3_64(body)));
    let seen = (answer.header("x-mock-body-bytes").to_owned(), answer.header("x-mock-body-xxh3").to_owned());
    assert_eq!(seen, sent, "{what}: {} {:.200}", answer.status, answer.text());
}

#[tokio::test]
async fn chats_of_all_sizes_in_all_framings() {
    let engine = engine();
    let proxy = Proxy::start(&[&engine], "").await;
    for size in SIZES {
        let body = chat_of_size(size);
        for framing in Framing::ALL {
            let request = Request::post("/v1/chat/completions").body(body.clone()).unwrap();
            let answer = client::send(proxy.address, request, framing).await;
            assert_intact(&answer, &body, &format!("{size} bytes, {framing:?}"));
            let expected = if size == 1 { 400 } else { 200 };
            assert_eq!(answer.status, expected, "{size} bytes, {framing:?}: {}", answer.text());
        }
    }
    assert_eq!(engine.stat("max_body_bytes").await, 20_000_000);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn unknown_paths_carry_any_bytes_in_all_framings() {
    let engine = engine();
    let proxy = Proxy::start(&[&engine], "").await;
    for size in SIZES {
        let body = noise(size);
        for framing in Framing::ALL {
            let request = Request::put("/some/where?a=b%20c").body(body.clone()).unwrap();
            let answer = client::send(proxy.address, request, framing).await;
            assert_intact(&answer, &body, &format!("{size} bytes, {framing:?}"));
            let echo = answer.json();
            assert_eq!((&echo["method"], &echo["path"]), (&json!("PUT"), &json!("/some/where?a=b%20c")));
        }
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn requests_without_a_body_stay_without() {
    let engine = engine();
    let proxy = Proxy::start(&[&engine], "").await;
    for framing in Framing::ALL {
        for method in [Method::GET, Method::DELETE] {
            let request = Request::builder().method(method).uri("/nothing").body(Bytes::new()).unwrap();
            let answer = client::send(proxy.address, request, framing).await;
            assert_intact(&answer, &Bytes::new(), &format!("{framing:?}"));
        }
        // A POST may be empty too: the engine says what it misses.
        let request = Request::post("/v1/chat/completions").body(Bytes::new()).unwrap();
        let answer = client::send(proxy.address, request, framing).await;
        assert_eq!(answer.status, 400, "{framing:?}");
        assert_intact(&answer, &Bytes::new(), &format!("{framing:?}"));
    }
}

#[tokio::test]
async fn engines_see_a_length_and_no_other_framing() {
    let engine = engine();
    let proxy = Proxy::start(&[&engine], "").await;
    for framing in Framing::ALL {
        let body = chat_of_size(70_000);
        let request = Request::post("/v1/chat/completions").body(body.clone()).unwrap();
        client::send(proxy.address, request, framing).await;
        let seen = engine.last().await;
        assert_eq!(seen["framing"], "content-length", "{framing:?}");
        assert_eq!(seen["version"], "HTTP/1.1", "{framing:?}");
        assert_eq!(logged_values(&seen, "content-length"), ["70000"], "{framing:?}");
        for name in ["transfer-encoding", "expect", "trailer", "connection"] {
            assert!(logged_values(&seen, name).is_empty(), "{framing:?}: {name} in {seen}");
        }
    }
}

#[tokio::test]
async fn trailers_and_extensions_of_a_chunked_body_end_here() {
    let engine = engine();
    let proxy = Proxy::start(&[&engine], "").await;
    let request = "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                   5;name=value\r\nhello\r\n6\r\n world\r\n0\r\nx-sum: 1\r\n\r\n";
    let (head, body) = raw::ask(proxy.address, request).await;
    assert_eq!(head.status, 200, "{}", head.text);
    let echo: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(echo["body_bytes"], 11);
    assert_eq!(echo["body_xxh3"], format!("{:016x}", xxh3_64(b"hello world")));
    let seen = engine.last().await;
    assert_eq!(seen["trailers"], json!(null));
    assert!(logged_values(&seen, "trailer").is_empty(), "{seen}");
}

/// The negative control of this file: an engine whose body differs in one byte is told apart.
#[test]
fn the_comparison_sees_one_byte() {
    let (mut headers, body) = (http::HeaderMap::new(), noise(1000));
    let mut other = body.to_vec();
    other[999] ^= 1;
    headers.insert("x-mock-body-bytes", header::HeaderValue::from(1000));
    headers.insert("x-mock-body-xxh3", format!("{:016x}", xxh3_64(&other)).parse().unwrap());
    let answer = Answer { status: http::StatusCode::OK, headers, trailers: None, body: Bytes::new() };
    assert!(std::panic::catch_unwind(|| assert_intact(&answer, &body, "")).is_err());
}
