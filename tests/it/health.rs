//! Do checks take a sick engine out and bring it back, without ever counting as load?

use larder_tests::client;
use larder_tests::world::{Engine, Proxy, chat, prose};
use serde_json::json;

const UP: &str = "larder_endpoint_up";
/// Details (models, metrics) are read with each 15th check: every 300 ms.
const FAST: &str = "[health]\ninterval = \"20ms\"\ntimeout = \"1s\"\nunhealthy_after = 2\nhealthy_after = 2";

fn label(engine: &Engine) -> String {
    format!("endpoint=\"{}\"", engine.name())
}

#[tokio::test]
async fn a_sick_engine_is_left_out_until_it_is_well() {
    let engines = [Engine::start(&["--time-scale=100"]), Engine::start(&["--time-scale=100"])];
    let proxy =
        Proxy::start(&[&engines[0], &engines[1]], &format!("{FAST}\n[routing]\npolicy = \"round_robin\""))
            .await;
    let sick = &engines[0];
    for fault in [
        json!({"kind": "status", "status": 503, "all_paths": true}),
        json!({"kind": "reset_mid_stream", "chunks": 0, "all_paths": true}),
        json!({"kind": "hang", "all_paths": true}),
    ] {
        sick.fault(fault.clone()).await;
        proxy.metric_becomes(UP, &[&label(sick)], 0.0).await;
        for _ in 0..4 {
            let answer = client::chat(proxy.address, &chat("hello", 2, false)).await;
            assert_eq!(
                (answer.status.as_u16(), answer.header("x-larder-endpoint")),
                (200, &*engines[1].name()),
                "{fault}"
            );
        }
        assert_eq!(client::get(proxy.admin, "/readyz").await.status, 200, "one is enough");
        sick.fault(json!({"kind": "none"})).await;
        proxy.metric_becomes(UP, &[&label(sick)], 1.0).await;
        let mut names: Vec<String> = Vec::new();
        for _ in 0..2 {
            let answer = client::chat(proxy.address, &chat("hello", 2, false)).await;
            names.push(answer.header("x-larder-endpoint").to_owned());
        }
        assert!(names.contains(&sick.name()), "{names:?}");
    }
}

#[tokio::test]
async fn checks_never_count_as_load() {
    let engines = [Engine::start(&[]), Engine::start(&[])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], FAST).await;
    // Checks in flight: they hang for a second each.
    engines[0].fault(json!({"kind": "hang", "all_paths": true})).await;
    let (seen, checked) = (engines[0].stat("requests").await, engines[1].stat("requests").await);
    engines[0].stat_reaches("requests", seen + 1).await;
    engines[1].stat_reaches("requests", checked + 20).await;
    for name in [
        "larder_in_flight_requests",
        "larder_uncached_tokens_in_flight",
        "larder_decisions_total",
        "larder_requests_total",
        "larder_upstream_errors_total",
        "larder_client_aborts_total",
        "larder_client_connections",
    ] {
        assert_eq!(proxy.metric(name, &[]).await, 0.0, "{name}");
    }
}

#[tokio::test]
async fn a_restarted_engine_is_served_again_and_counts_as_empty() {
    let first = Engine::start(&["--time-scale=100"]);
    let address = first.address;
    let proxy = Proxy::start(&[&first], FAST).await;
    let body = chat(&prose(20_000, 1), 2, false);
    assert_eq!(client::chat(proxy.address, &body).await.status, 200);
    assert!(proxy.metric("larder_index_elements", &[]).await > 30.0);
    // Until its counters have been read after that request.
    let checks = first.stat("requests").await;
    first.stat_reaches("requests", checks + 40).await;
    first.program.signal("KILL");
    proxy.metric_becomes(UP, &[], 0.0).await;
    assert_eq!(client::chat(proxy.address, &body).await.status, 503);
    drop(first);
    let again = Engine::start_with(&address.to_string(), &["--model", "mock", "--time-scale=100"]);
    proxy.metric_becomes(UP, &[], 1.0).await;
    proxy.metric_becomes("larder_index_elements", &[], 0.0).await;
    let answer = client::chat(proxy.address, &body).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-larder-matched-tokens")), (200, "0"));
    assert_eq!(again.stat("finished").await, 1);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn an_engine_that_is_sick_from_the_start_joins_later() {
    let engine = Engine::start(&["--ready-after-s=1.5"]);
    let proxy = Proxy::start_unready(&larder_tests::world::config(&[engine.address], FAST));
    client::wait_for(proxy.admin, "/readyz", http::StatusCode::SERVICE_UNAVAILABLE).await;
    proxy.metric_becomes(UP, &[], 0.0).await;
    client::wait_for(proxy.admin, "/readyz", http::StatusCode::OK).await;
    assert_eq!(client::chat(proxy.address, &chat("hello", 2, false)).await.status, 200);
    // Its models and its capacity are read then too.
    assert_eq!(proxy.metric("larder_kv_capacity_tokens", &[]).await, 131_072.0);
}

#[tokio::test]
async fn another_path_can_be_probed() {
    let engine = Engine::start(&[]);
    let health = "[health]\ninterval = \"20ms\"\npath = \"/version\"\nmetrics_path = \"\"";
    let proxy = Proxy::start(&[&engine], health).await;
    let log = client::get_json(engine.address, "/debug/requests").await;
    assert!(log.as_array().unwrap().iter().any(|request| request["path"] == "/version"), "{log}");
    assert_eq!(
        proxy.metric("larder_kv_capacity_tokens", &[]).await,
        500_000.0,
        "the default: metrics are not read"
    );
}
