//! When an engine fails, does the client hear of it, and is no engine asked twice for one request?

use larder_tests::client::{self, Framing, json_request};
use larder_tests::world::{Engine, Proxy, chat, config, prose};
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use crate::limits::assert_refusal;

const CHAT: &str = "/v1/chat/completions";
const ERRORS: &str = "larder_upstream_errors_total";
/// Checks so seldom that the proxy learns only from requests.
const BLIND: &str = "[health]\ninterval = \"1h\"\n";

fn blind(routing: &str) -> String {
    format!("{BLIND}[routing]\npolicy = \"round_robin\"\n{routing}")
}

#[tokio::test]
async fn an_engine_that_dies_before_its_answer_is_a_bad_gateway() {
    for framing in Framing::ALL {
        let engines = [Engine::start(&[]), Engine::start(&[])];
        let proxy = Proxy::start(&[&engines[0], &engines[1]], &blind("")).await;
        let asking = tokio::spawn(client::send(
            proxy.address,
            json_request(CHAT, &chat("hello", 1000, false)),
            framing,
        ));
        engines[0].stat_reaches("running", 1).await;
        engines[0].program.signal("KILL");
        assert_refusal(&asking.await.unwrap(), 502, "engine_unreachable");
        // The first may have done the work: the second is not asked for it again.
        assert!(engines[1].requests().await.is_empty(), "{framing:?}");
        assert_eq!(proxy.metric(ERRORS, &["kind=\"exchange\""]).await, 1.0);
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn an_engine_that_dies_in_a_stream_breaks_it_visibly() {
    for framing in Framing::ALL {
        let engine = Engine::start(&[]);
        let proxy = Proxy::start(&[&engine], BLIND).await;
        let mut stream =
            client::open(proxy.address, json_request(CHAT, &chat("hello", 1000, true)), framing).await;
        stream.piece().await.unwrap().unwrap();
        engine.program.signal("KILL");
        assert!(stream.rest().await.is_err(), "{framing:?}: the end of the stream looks clean");
        assert_eq!(proxy.metric(ERRORS, &["kind=\"broken_answer\""]).await, 1.0, "{framing:?}");
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn a_reset_breaks_whole_and_streamed_answers_visibly() {
    let engine = Engine::start(&["--time-scale=100"]);
    let proxy = Proxy::start(&[&engine], BLIND).await;
    for framing in Framing::ALL {
        for (stream, chunks) in [(true, 3), (false, 3), (true, 1)] {
            engine.fault(json!({"kind": "reset_mid_stream", "chunks": chunks, "count": 1})).await;
            let request = json_request(CHAT, &chat("hello", 30, stream));
            let opened = client::open(proxy.address, request, framing).await;
            assert_eq!(opened.status, 200);
            assert!(opened.rest().await.is_err(), "{framing:?} stream {stream}: the end looks clean");
            proxy.becomes_idle().await;
        }
        engine.fault(json!({"kind": "reset_mid_stream", "chunks": 0, "count": 1})).await;
        let answer = client::send(proxy.address, json_request(CHAT, &chat("hello", 5, true)), framing).await;
        assert_refusal(&answer, 502, "engine_unreachable");
        // Well again.
        assert_eq!(client::chat(proxy.address, &chat("hello", 5, true)).await.status, 200);
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn an_engine_that_cannot_be_reached_is_replaced_by_another() {
    let engines = [Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], &blind("")).await;
    // Twenty seconds of refusal, longer than this test.
    engines[0].fault(json!({"kind": "refuse", "delay_s": 20.0})).await;
    engines[0].refuses().await;
    for (n, framing) in Framing::ALL.iter().enumerate() {
        let body = chat(&prose(150_000, n as u64), 3, false);
        for _ in 0..2 {
            let answer = client::send(proxy.address, json_request(CHAT, &body), *framing).await;
            assert_eq!(answer.status, 200, "{framing:?}: {}", answer.text());
            assert_eq!(answer.header("x-larder-endpoint"), engines[1].name());
            assert_eq!(answer.header("x-mock-body-xxh3"), format!("{:016x}", xxh3_64(body.as_bytes())));
        }
    }
    assert_eq!(engines[1].requests().await.len(), 8, "each request once");
    assert!(proxy.metric(ERRORS, &["kind=\"connect\""]).await >= 4.0);
    proxy.becomes_idle().await;
}

/// A host that answers no SYN: behind a full queue of connections that nobody accepts.
async fn deaf() -> (tokio::net::TcpListener, Vec<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Linux keeps one more than it is told.
    let mut queued = Vec::new();
    for _ in 0..2 {
        queued.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    (listener, queued)
}

#[tokio::test]
async fn an_engine_that_takes_no_connection_in_time_is_replaced_by_another() {
    let (listener, _queued) = deaf().await;
    let engine = Engine::start(&["--time-scale=100"]);
    let endpoints = [listener.local_addr().unwrap(), engine.address];
    let limits = "[timeouts]\nconnect = \"200ms\"\n[breaker]\nfailures = 0\n";
    let proxy = Proxy::start_with(&config(&endpoints, &format!("{limits}{}", blind("")))).await;
    for framing in Framing::ALL {
        for _ in 0..2 {
            let answer =
                client::send(proxy.address, json_request(CHAT, &chat("hello", 3, false)), framing).await;
            assert_eq!(answer.status, 200, "{framing:?}: {}", answer.text());
            assert_eq!(answer.header("x-larder-endpoint"), engine.name());
        }
    }
    assert!(proxy.metric(ERRORS, &["kind=\"connect\""]).await >= 4.0);
    assert!(proxy.program.log().contains("no connection within 200 ms"), "{}", proxy.program.log());
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn with_all_engines_gone_the_client_is_told_what_to_do() {
    let engines = [Engine::start(&[]), Engine::start(&[])];
    let proxy =
        Proxy::start(&[&engines[0], &engines[1]], "[health]\ninterval = \"100ms\"\nunhealthy_after = 3")
            .await;
    for engine in &engines {
        engine.kill().await;
    }
    // Noticed only by the request, or by the checks already.
    let answer = client::chat(proxy.address, &chat("hello", 3, false)).await;
    assert!(matches!(answer.status.as_u16(), 502 | 503), "{}", answer.text());
    proxy.metric_becomes("larder_endpoint_up", &[], 0.0).await;
    for framing in Framing::ALL {
        let answer = client::send(proxy.address, json_request(CHAT, &chat("hello", 3, false)), framing).await;
        assert_refusal(&answer, 503, "no_endpoint");
        assert_eq!(answer.header("retry-after"), "1");
        assert!(answer.text().contains("unavailable"), "{}", answer.text());
    }
    assert_eq!(client::get(proxy.admin, "/readyz").await.status, 503);
    assert_eq!(client::get(proxy.admin, "/healthz").await.status, 200);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn attempts_are_limited() {
    let engines: Vec<Engine> = (0..3).map(|_| Engine::start(&[])).collect();
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), &blind("max_attempts = 2")).await;
    for engine in &engines[..2] {
        engine.kill().await;
    }
    let answer = client::chat(proxy.address, &chat("hello", 3, false)).await;
    assert_refusal(&answer, 503, "no_endpoint");
    assert_eq!(proxy.metric(ERRORS, &["kind=\"connect\""]).await, 2.0);
    assert!(engines[2].requests().await.is_empty());
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn what_an_engine_answers_passes_as_it_is() {
    let engines = [Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], &blind("")).await;
    for status in [400, 404, 429, 500, 503] {
        engines[0].fault(json!({"kind": "status", "status": status, "count": 2})).await;
        let direct = client::chat(engines[0].address, &chat("hello", 3, false)).await;
        let answer = loop {
            let answer = client::chat(proxy.address, &chat("hello", 3, false)).await;
            if answer.header("x-larder-endpoint") == engines[0].name() {
                break answer;
            }
        };
        assert_eq!((answer.status.as_u16(), &answer.body), (status, &direct.body));
        proxy.becomes_idle().await;
    }
    assert_eq!(proxy.metric(ERRORS, &[]).await, 0.0, "an answer is no failure of the exchange");
}

#[tokio::test]
async fn an_engine_that_does_not_answer_in_time_is_a_gateway_timeout() {
    let engines = [Engine::start(&[]), Engine::start(&[])];
    let timeouts = "[timeouts]\nfirst_byte = \"300ms\"\n";
    let proxy = Proxy::start(&[&engines[0], &engines[1]], &format!("{timeouts}{}", blind(""))).await;
    for engine in &engines {
        engine.fault(json!({"kind": "hang"})).await;
    }
    for framing in Framing::ALL {
        let answer = client::send(proxy.address, json_request(CHAT, &chat("hello", 3, true)), framing).await;
        assert_refusal(&answer, 504, "engine_timeout");
    }
    assert_eq!(proxy.metric(ERRORS, &["kind=\"timeout\""]).await, 4.0);
    let asked = engines[0].requests().await.len() + engines[1].requests().await.len();
    assert_eq!(asked, 4, "each request once");
    proxy.becomes_idle().await;
}
