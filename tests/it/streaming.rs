//! Does a stream reach the client event by event, and as the engine wrote it?

use http::HeaderMap;
use larder_tests::client::{self, Framing, json_request};
use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy, chat, prose};
use serde_json::Value;

const CHAT: &str = "/v1/chat/completions";

/// The JSON of each event, `[DONE]` apart.
fn events(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn the_first_event_comes_while_the_engine_still_writes() {
    // 20 s of stream, unless it is left.
    let engine = Engine::start(&["--decode-step-s=0.02"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for framing in Framing::ALL {
        let before = engine.stat("finished").await;
        let request = json_request(CHAT, &chat("tell me everything", 1000, true));
        let mut stream = client::open(proxy.address, request, framing).await;
        assert_eq!(stream.headers["content-type"], "text/event-stream; charset=utf-8");
        let mut seen = String::new();
        while events(&seen).len() < 3 {
            seen.push_str(std::str::from_utf8(&stream.piece().await.unwrap().unwrap()).unwrap());
        }
        assert!(events(&seen).len() < 900, "{framing:?}: not all of it at once");
        assert_eq!((engine.stat("running").await, engine.stat("finished").await), (1, before), "{framing:?}");
        drop(stream);
        engine.stat_reaches("aborted", 1).await;
        proxy.becomes_idle().await;
    }
    assert!(proxy.metric("larder_ttft_seconds_count", &[]).await >= 4.0);
}

#[tokio::test]
async fn each_event_is_sent_on_by_itself() {
    let engine = Engine::start(&["--decode-step-s=0.05"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat("hello", 8, true);
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut client = Raw::send(proxy.address, head).await;
    assert_eq!(client.head().await.unwrap().value("transfer-encoding"), "chunked");
    let mut chunks = Vec::new();
    while let Some(chunk) = client.chunk().await.unwrap() {
        chunks.push(String::from_utf8(chunk).unwrap());
    }
    // The engine writes each of the 8 tokens by itself, 50 ms apart; a stall of the machine may join a few.
    assert!(chunks.len() >= 4, "{} chunks", chunks.len());
    assert!(chunks.iter().all(|chunk| chunk.ends_with("\n\n")), "{chunks:?}");
}

#[tokio::test]
async fn the_bytes_are_the_engines() {
    // Two engines of one seed answer alike, but for the second of their clocks.
    let (direct, behind) = (Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"]));
    let proxy = Proxy::start(&[&behind], "").await;
    for stream in [true, false] {
        for framing in Framing::ALL {
            let body = chat(&prose(3000, framing as u64), 40, stream);
            let mut answers = Vec::new();
            for (address, framing) in [(direct.address, Framing::Length), (proxy.address, framing)] {
                let mut request = json_request(CHAT, &body);
                request.headers_mut().insert("x-request-id", "same".parse().unwrap());
                let answer = client::send(address, request, framing).await;
                answers.push((without_time(&answer.text()), without_hop(answer.headers)));
            }
            assert_eq!(answers[0], answers[1], "{framing:?} stream {stream}");
        }
    }
}

/// An answer but for the second of the engine's clock.
pub(crate) fn without_time(text: &str) -> String {
    let mut parts = text.split("\"created\":");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

/// What the proxy adds, and what only says how one connection frames its bytes.
fn without_hop(mut headers: HeaderMap) -> HeaderMap {
    for name in [
        "x-larder-endpoint",
        "x-larder-matched-tokens",
        "x-request-id",
        "transfer-encoding",
        "date",
        "content-length",
    ] {
        headers.remove(name);
    }
    headers
}

#[tokio::test]
async fn usage_and_done_arrive_and_are_read_on_the_way() {
    let engine = Engine::start(&["--time-scale=100"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(8000, 1), 20, true);
    for turn in 0..2 {
        let answer = client::post(proxy.address, CHAT, &body).await;
        let text = answer.text();
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let events = events(&text);
        assert_eq!(events.len(), 1 + 20 + 1, "the opening, 20 tokens, the usage");
        let usage = &events.last().unwrap()["usage"];
        assert_eq!(usage["completion_tokens"], 20);
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert_eq!(cached > 0, turn == 1, "{usage}");
        proxy.becomes_idle().await;
        assert_eq!(proxy.metric("larder_actual_cached_tokens_total", &[]).await, cached as f64);
    }
    assert_eq!(proxy.metric("larder_usage_missing_total", &[]).await, 0.0);
    assert_eq!(proxy.metric("larder_ttft_seconds_count", &[]).await, 2.0);
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_usage_gets_none_and_is_counted() {
    let engine = Engine::start(&["--time-scale=100"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat("hello", 5, true).replace("\"include_usage\":true", "\"include_usage\":false");
    let answer = client::post(proxy.address, CHAT, &body).await;
    assert!(!answer.text().contains("\"usage\""), "{}", answer.text());
    proxy.becomes_idle().await;
    assert_eq!(proxy.metric("larder_usage_missing_total", &[]).await, 1.0);
}

#[tokio::test]
async fn many_streams_at_once_do_not_mix() {
    let engines = [Engine::start(&["--time-scale=20"]), Engine::start(&["--time-scale=20"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    let mut streams = tokio::task::JoinSet::new();
    for n in 0..40u64 {
        let framing = Framing::ALL[n as usize % 4];
        let body = chat(&prose(2000, n), 30, true);
        let address = proxy.address;
        streams.spawn(async move { (client::send(address, json_request(CHAT, &body), framing).await, body) });
    }
    while let Some(done) = streams.join_next().await {
        let (answer, body) = done.unwrap();
        let text: String = events(&answer.text())
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        let name = format!("req-{:016x} len-{} ", xxhash_rust::xxh3::xxh3_64(body.as_bytes()), body.len());
        assert!(text.starts_with(&name), "{text} is not the answer to {name}");
    }
    proxy.becomes_idle().await;
    assert_eq!(engines[0].stat("finished").await + engines[1].stat("finished").await, 40);
}
