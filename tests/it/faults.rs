//! Are retries limited, are endpoints that fail left alone and tried again, and does a broken stream say that it broke?

use larder_tests::client::{self, Answer, Framing, json_request};
use larder_tests::scripted::{Scripted, Then};
use larder_tests::world::{Engine, Proxy, chat, config};
use serde_json::{Value, json};

use crate::limits::assert_refusal;

const CHAT: &str = "/v1/chat/completions";
/// Checks so seldom that the proxy learns only from requests.
const BLIND: &str = "[health]\ninterval = \"1h\"\n[routing]\npolicy = \"round_robin\"\n";

async fn ask(proxy: &Proxy) -> Answer {
    client::chat(proxy.address, &chat("hello", 3, false)).await
}

async fn fails(engine: &Engine, count: u64) {
    engine.fault(json!({"kind": "status", "status": 500, "count": count})).await;
}

#[tokio::test]
async fn retries_end_with_their_budget() {
    let engines = [Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"])];
    let extra = format!("{BLIND}[retry]\nbudget = 0.0\nburst = 2\n[breaker]\nfailures = 0\n");
    let proxy = Proxy::start(&[&engines[0], &engines[1]], &extra).await;
    engines[0].kill().await;
    let mut refused = 0.0;
    for _ in 0..12 {
        let answer = ask(&proxy).await;
        if answer.status != 200 {
            assert_refusal(&answer, 502, "engine_unreachable");
            refused += 1.0;
        }
    }
    assert!(refused > 0.0, "round robin comes by the dead one more than twice in twelve");
    assert_eq!(proxy.metric("larder_retries_total", &["result=\"sent\""]).await, 2.0);
    assert_eq!(proxy.metric("larder_retries_total", &["result=\"no_budget\""]).await, refused);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn what_an_engine_may_have_started_is_asked_again_only_where_the_operator_says_so() {
    // That it is not by default is tested in `lost`.
    for framing in Framing::ALL {
        let engines = [Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"])];
        let extra = format!("{BLIND}[retry]\nmay_have_started = true\n");
        let proxy = Proxy::start(&[&engines[0], &engines[1]], &extra).await;
        for engine in &engines {
            engine.fault(json!({"kind": "reset_mid_stream", "chunks": 0, "count": 1})).await;
        }
        let request = || json_request(CHAT, &chat("hello", 3, true));
        // The second breaks off too, and nobody is left.
        let answer = client::send(proxy.address, request(), framing).await;
        assert_refusal(&answer, 502, "engine_unreachable");
        engines[0].fault(json!({"kind": "reset_mid_stream", "chunks": 0, "count": 1})).await;
        for _ in 0..2 {
            let answer = client::send(proxy.address, request(), framing).await;
            assert_eq!(answer.status, 200, "{framing:?}: {}", answer.text());
            assert!(answer.text().contains("[DONE]"));
        }
        assert_eq!(proxy.metric("larder_retries_total", &["result=\"sent\""]).await, 2.0);
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_alone_and_tried_again() {
    let engines = [Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"])];
    let breaker = "[breaker]\nfailures = 3\nopen = \"300ms\"\nopen_max = \"300ms\"\n";
    let proxy = Proxy::start(&[&engines[0], &engines[1]], &format!("{BLIND}{breaker}")).await;
    let name = engines[0].name();
    // Three to eject it, and one for the first probe.
    fails(&engines[0], 4).await;
    let mut failed = 0;
    while proxy.metric("larder_endpoint_ejected", &[&name]).await == 0.0 {
        failed += usize::from(ask(&proxy).await.status == 500);
        assert!(failed <= 3);
    }
    assert_eq!(failed, 3);
    // It comes back by a probe that fares well, the second.
    for n in 0.. {
        let answer = ask(&proxy).await;
        if answer.header("x-larder-endpoint") == name && answer.status == 200 {
            break;
        }
        assert!(n < 2_000, "it never came back");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    proxy.metric_becomes("larder_endpoint_ejected", &[&name], 0.0).await;
    assert_eq!(proxy.metric("larder_ejections_total", &[&name]).await, 2.0);
    assert_eq!(proxy.metric("larder_ejections_total", &[&engines[1].name()]).await, 0.0);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn breakers_alone_never_leave_a_pool_empty() {
    let engine = Engine::start(&["--time-scale=100"]);
    let proxy = Proxy::start(
        &[&engine],
        &format!("{BLIND}[breaker]\nfailures = 2\nopen = \"1h\"\nopen_max = \"1h\"\n"),
    )
    .await;
    fails(&engine, 3).await;
    for _ in 0..3 {
        assert_eq!(ask(&proxy).await.status, 500);
    }
    assert_eq!(proxy.metric("larder_endpoint_ejected", &[]).await, 1.0);
    assert_eq!(proxy.metric("larder_all_ejected_total", &[]).await, 1.0);
    // An answer is proof that it is well.
    assert_eq!(ask(&proxy).await.status, 200);
    proxy.metric_becomes("larder_endpoint_ejected", &[], 0.0).await;
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn engines_that_refuse_a_request_are_not_to_blame() {
    let engine = Engine::start(&["--time-scale=100"]);
    let proxy = Proxy::start(&[&engine], &format!("{BLIND}[breaker]\nfailures = 1\n")).await;
    for status in [400, 404, 429, 501] {
        engine.fault(json!({"kind": "status", "status": status, "count": 1})).await;
        assert_eq!(ask(&proxy).await.status.as_u16(), status);
    }
    assert_eq!(proxy.metric("larder_ejections_total", &[]).await, 0.0);
}

/// Each kind of failure counts: no connection, a reset before and within the answer, an error of the server's, no answer.
#[tokio::test]
async fn every_kind_of_failure_opens_a_breaker() {
    for (what, fault, limit) in [
        ("connect", json!({"kind": "refuse", "delay_s": 3600.0}), "1h"),
        ("reset", json!({"kind": "reset_mid_stream", "chunks": 0}), "1h"),
        ("broken", json!({"kind": "reset_mid_stream", "chunks": 2}), "1h"),
        ("status", json!({"kind": "status", "status": 503}), "1h"),
        ("first byte", json!({"kind": "hang"}), "200ms"),
    ] {
        let engine = Engine::start(&["--time-scale=100"]);
        let limits = format!("[timeouts]\nfirst_byte = \"{limit}\"\n");
        let breaker = "[breaker]\nfailures = 2\nopen = \"1h\"\nopen_max = \"1h\"\n";
        let proxy = Proxy::start(&[&engine], &format!("{BLIND}{limits}{breaker}")).await;
        engine.fault(fault).await;
        for n in 0..2 {
            assert_eq!(proxy.metric("larder_endpoint_ejected", &[]).await, 0.0, "{what}, after {n}");
            let request = json_request(CHAT, &chat("hello", 30, true));
            let _ = client::open(proxy.address, request, Framing::Length).await.rest().await;
            proxy.becomes_idle().await;
        }
        proxy.metric_becomes("larder_endpoint_ejected", &[], 1.0).await;
    }
}

/// Reads a stream to its visible break; returns its text.
async fn broken_text(proxy: &Proxy, framing: Framing, tokens: u32) -> String {
    let request = json_request(CHAT, &chat("hello", tokens, true));
    let mut stream = client::open(proxy.address, request, framing).await;
    assert_eq!(stream.status, 200);
    let mut text = Vec::new();
    loop {
        match stream.piece().await {
            Some(Ok(piece)) => text.extend_from_slice(&piece),
            Some(Err(_)) => return String::from_utf8(text).unwrap(),
            None => panic!("{framing:?}: the end looks clean: {}", String::from_utf8_lossy(&text)),
        }
    }
}

/// The last event of a stream, which must be an error; all before are whole events of the engine.
fn last_error(text: &str) -> Value {
    assert!(!text.contains("[DONE]"), "{text}");
    let events: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let (last, before) = events.split_last().unwrap();
    assert!(!before.is_empty() && before.iter().all(|event| event.get("error").is_none()), "{text}");
    assert!(last["error"]["message"].is_string() && last["error"]["type"] == "server_error", "{last}");
    last["error"]["code"].clone()
}

#[tokio::test]
async fn a_stream_whose_engine_dies_ends_with_an_error_event() {
    let engine = Engine::start(&["--time-scale=100"]);
    let proxy = Proxy::start(&[&engine], BLIND).await;
    for framing in Framing::ALL {
        engine.fault(json!({"kind": "reset_mid_stream", "chunks": 3, "count": 1})).await;
        let text = broken_text(&proxy, framing, 30).await;
        assert_eq!(last_error(&text), "engine_lost", "{framing:?}");
        proxy.becomes_idle().await;
    }
    assert_eq!(proxy.metric("larder_upstream_errors_total", &["kind=\"broken_answer\""]).await, 4.0);
}

/// The first event comes with the head of the answer, so that it is there before any limit, however busy the machine.
#[tokio::test]
async fn a_stream_that_stalls_or_never_ends_is_ended() {
    let event = "data: {}\n\n";
    let stream = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{event}\r\n",
        event.len()
    );
    for (limits, kind, code) in [
        ("idle = \"500ms\"\ntotal = \"1h\"", "stalled", "engine_stalled"),
        ("idle = \"1h\"\ntotal = \"1s\"", "too_long", "answer_too_long"),
    ] {
        let stream = stream.clone();
        let engine = Scripted::start(move |_| (stream.clone().into_bytes(), Then::Hang)).await;
        let text = format!("[timeouts]\n{limits}\n{BLIND}");
        let proxy = Proxy::start_with(&config(&[engine.address], &text)).await;
        for framing in [Framing::Length, Framing::H2] {
            let text = broken_text(&proxy, framing, 30).await;
            assert_eq!(last_error(&text), code, "{framing:?}");
            proxy.becomes_idle().await;
        }
        assert_eq!(proxy.metric("larder_upstream_errors_total", &[&format!("kind=\"{kind}\"")]).await, 2.0);
    }
}

/// One that goes on and on is cut at its limit too, and its engine stops.
#[tokio::test]
async fn an_engine_whose_stream_is_ended_stops() {
    let engine = Engine::start(&[]);
    let limits = "[timeouts]\nidle = \"1h\"\ntotal = \"1s\"\n";
    let proxy = Proxy::start(&[&engine], &format!("{limits}{BLIND}")).await;
    for (n, framing) in (1..).zip([Framing::Length, Framing::H2]) {
        let text = broken_text(&proxy, framing, 100_000).await;
        assert!(!text.contains("[DONE]") && text.contains("answer_too_long"), "{framing:?}: {text}");
        proxy.becomes_idle().await;
        engine.stat_reaches("aborted", n).await;
    }
    assert_eq!(engine.stat("running").await, 0);
}
