//! Does the proxy tell why, and tell it truly, without a word of any prompt?

use http::StatusCode;
use larder_tests::client;
use larder_tests::raw::Raw;
use larder_tests::scripted::Scripted;
use larder_tests::world::{Engine, Proxy, chat, config, prose};
use serde_json::Value;

const ACCESS_LOG: &str = "access_log = true\nlog_format = \"json\"\n";

/// The proxy's access log so far.
fn access_log(proxy: &Proxy) -> Vec<Value> {
    let lines = proxy.program.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["target"] == "larder_proxy::access_log").map(|l| l["fields"].clone()).collect()
}

async fn access_log_reaches(proxy: &Proxy, lines: usize) -> Vec<Value> {
    for _ in 0..2_000 {
        let log = access_log(proxy);
        if log.len() >= lines {
            return log;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} lines: {}", access_log(proxy).len(), proxy.program.log());
}

#[tokio::test]
async fn an_explanation_says_where_a_request_would_go_and_sends_nothing() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    let body = chat(&prose(8_000, 1), 2, false);
    let cold = client::post(proxy.admin, "/v1/explain", &body).await;
    assert_eq!(cold.header("content-type"), "application/json");
    let cold = cold.json();
    assert_eq!((&cold["pool"], &cold["policy"]), (&"mock".into(), &"larder".into()));
    assert_eq!(cold["candidates"].as_array().unwrap().len(), 2);
    assert!(cold["prompt"]["elements"].as_u64().unwrap() >= 15, "{cold}");
    assert!(cold["candidates"].as_array().unwrap().iter().all(|c| c["matched_tokens"] == 0), "{cold}");

    let answer = client::chat(proxy.address, &body).await;
    proxy.becomes_idle().await;
    let warm = client::post(proxy.admin, "/v1/explain", &body).await.json();
    let first = &warm["candidates"][0];
    assert_eq!(first["endpoint"], answer.header("x-larder-endpoint"), "{warm}");
    assert!(first["matched_tokens"].as_u64().unwrap() > 1_000, "{warm}");
    assert!(first["cost_s"].as_f64() < warm["candidates"][1]["cost_s"].as_f64(), "{warm}");
    // Explaining twice gives the same: nothing was remembered. And the next request does what was said.
    assert_eq!(client::post(proxy.admin, "/v1/explain", &body).await.json()["prompt"], warm["prompt"]);
    let next = client::chat(proxy.address, &body).await;
    assert_eq!(next.header("x-larder-endpoint"), first["endpoint"].as_str().unwrap());
    proxy.becomes_idle().await;

    let seen = engines[0].requests().await.len() + engines[1].requests().await.len();
    assert_eq!(seen, 2, "explanations are not forwarded");
    assert_eq!(proxy.metric("larder_decisions_total", &[]).await, 2.0);
    assert_eq!(proxy.metric("larder_requests_total", &[]).await, 2.0);
}

#[tokio::test]
async fn an_explanation_says_what_is_in_the_way() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "[limits]\nmax_body = \"1KiB\"\n").await;
    let explain =
        async |query: &str, body: &str| client::post(proxy.admin, &format!("/v1/explain{query}"), body).await;
    let no_chain = explain("", r#"{"model": "mock", "messages": 7}"#).await.json();
    assert!(no_chain["no_chain"].is_string() && no_chain["prompt"].is_null(), "{no_chain}");
    let other = explain("?path=/v1/completions", r#"{"model": "mock", "prompt": "abc"}"#).await.json();
    assert!(other["no_chain"].is_null() && other["prompt"]["bytes"].as_u64().unwrap() > 0, "{other}");
    assert_eq!(explain("", r#"{"model": "nobody"}"#).await.status, StatusCode::NOT_FOUND);
    assert_eq!(explain("?path=/tokenize", "{}").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(explain("", &"x".repeat(2_000)).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(client::get(proxy.admin, "/v1/explain").await.status, StatusCode::METHOD_NOT_ALLOWED);
    engine.kill().await;
    proxy.metric_becomes("larder_endpoint_up", &[], 0.0).await;
    let down = explain("", &chat("x", 1, false)).await.json();
    assert_eq!(down["candidates"][0]["refused"], "failed its health checks", "{down}");
}

#[tokio::test]
async fn the_last_decisions_carry_their_terms_and_fates() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(8_000, 2), 2, true);
    for id in ["first", "second"] {
        let mut request = client::json_request("/v1/chat/completions", &body);
        request.headers_mut().insert("x-request-id", id.parse().unwrap());
        client::send(proxy.address, request, client::Framing::Length).await;
    }
    client::chat(proxy.address, "no JSON").await;
    proxy.becomes_idle().await;
    let all = client::get_json(proxy.admin, "/v1/decisions").await;
    let all = all["decisions"].as_array().unwrap();
    assert_eq!(all.len(), 3);
    assert_eq!((&all[2]["id"], &all[1]["id"]), (&"first".into(), &"second".into()));
    assert_eq!((&all[0]["fate"], &all[1]["fate"]), (&"failed".into(), &"completed".into()));
    let second = &all[1];
    assert_eq!(second["endpoint"], engine.name());
    assert!(second["matched_tokens"].as_u64().unwrap() > 1_000, "{second}");
    let cached = second["actual_cached_tokens"].as_u64().unwrap();
    assert_eq!(cached, engine.stat("cached_tokens_total").await, "{second}");
    for term in ["wait_s", "miss_s", "cost_s", "price"] {
        assert!(second[term].is_number(), "{term}: {second}");
    }
    let last = client::get_json(proxy.admin, "/v1/decisions?n=1").await;
    assert_eq!(last["decisions"].as_array().unwrap().len(), 1);
    let bad = client::get(proxy.admin, "/v1/decisions?n=x").await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn each_request_has_one_line_and_no_line_has_a_prompt() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], &format!("log = \"trace\"\n{ACCESS_LOG}")).await;
    let secret = "the-quick-brown-secret";
    client::chat(proxy.address, &chat(secret, 2, true)).await;
    client::chat(proxy.address, &chat(secret, 2, false)).await;
    client::chat(proxy.address, &format!("{secret} is no JSON")).await;
    client::get(proxy.address, &format!("/v1/unknown?prompt={secret}")).await;
    client::post(proxy.address, "/v1/models", secret).await;
    client::post(proxy.admin, "/v1/explain", &chat(secret, 2, false)).await;
    let log = access_log_reaches(&proxy, 5).await;
    assert_eq!(log.len(), 5, "{log:#?}");
    let line = &log[0];
    assert_eq!((&line["method"], &line["path"]), (&"POST".into(), &"/v1/chat/completions".into()));
    assert_eq!((&line["pool"], &line["endpoint"]), (&"mock".into(), &engine.name().into()));
    assert_eq!((&line["status"], &line["end"]), (&200.into(), &"complete".into()));
    assert!(line["bytes"].as_u64().unwrap() > 100 && line["ms"].as_f64() >= line["first_byte_ms"].as_f64());
    assert!(line["reason"].is_string() && line["id"].as_str().unwrap().len() == 32, "{line}");
    let statuses: Vec<_> = log.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 200, 400, 404, 405]);
    assert_eq!(log[3]["path"], "/v1/unknown");
    assert!(!proxy.program.log().contains(secret));
    let decisions = client::get(proxy.admin, "/v1/decisions").await.text();
    assert!(!decisions.contains(secret));
}

#[tokio::test]
async fn a_line_says_who_broke_it_off() {
    let broken = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort";
    let engine = Scripted::start(move |_| (broken.into(), larder_tests::scripted::Then::Close)).await;
    let proxy = Proxy::start_with(&config(&[engine.address], ACCESS_LOG)).await;
    Raw::send(proxy.address, "GET /x HTTP/1.1\r\nhost: x\r\n\r\n").await.to_end().await;
    assert_eq!(access_log_reaches(&proxy, 1).await[0]["end"], "broken");

    let hanging = Engine::start(&[]);
    hanging.fault(serde_json::json!({"kind": "hang", "chunks": 1})).await;
    let proxy = Proxy::start(&[&hanging], ACCESS_LOG).await;
    let mut request = client::json_request("/v1/chat/completions", &chat("x", 50, true));
    request.headers_mut().insert("x-request-id", "gone".parse().unwrap());
    let mut exchange = client::open(proxy.address, request, client::Framing::Length).await;
    exchange.piece().await.unwrap().unwrap();
    drop(exchange);
    let log = access_log_reaches(&proxy, 1).await;
    assert_eq!((&log[0]["end"], &log[0]["id"]), (&"aborted".into(), &"gone".into()));
    // Off by default.
    let proxy = Proxy::start(&[&Engine::start(&[])], "log_format = \"json\"\n").await;
    client::get(proxy.address, "/v1/models").await;
    assert!(access_log(&proxy).is_empty());
}
