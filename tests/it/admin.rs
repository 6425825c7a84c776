//! Does the admin listener tell the truth, and only what its documentation says?

use std::collections::BTreeSet;

use http::StatusCode;
use larder_tests::client::{self, Framing};
use larder_tests::program::workspace;
use larder_tests::raw::Raw;
use larder_tests::world::{Engine, Proxy, chat, config};

use crate::tidy::docs::documented_metrics;

#[tokio::test]
async fn ready_means_checked_and_able() {
    // Checks that hang: the first does not come back for a while.
    let engine = Engine::start(&[]);
    engine.fault(serde_json::json!({"kind": "hang", "all_paths": true})).await;
    let proxy =
        Proxy::start_unready(&config(&[engine.address], "[health]\ninterval = \"50ms\"\ntimeout = \"1h\""));
    let answer = client::get(proxy.admin, "/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().contains("0 of 1 endpoints checked"), "{}", answer.text());
    assert_eq!(client::get(proxy.admin, "/healthz").await.text(), "ok\n");

    let other = Engine::start(&[]);
    let proxy = Proxy::start(&[&other], "[health]\ninterval = \"20ms\"").await;
    other.program.signal("KILL");
    client::wait_for(proxy.admin, "/readyz", StatusCode::SERVICE_UNAVAILABLE).await;
    let text = client::get(proxy.admin, "/readyz").await.text();
    assert!(text.contains("no endpoint of `mock` is healthy"), "{text}");
}

/// Metrics of a cache node, and those of the proxy that only one brings about.
fn is_elsewhere(name: &str) -> bool {
    name.starts_with("larder_node_") || name == "larder_stage_calls_total"
}

#[tokio::test]
async fn every_documented_metric_is_there_after_traffic_of_every_kind() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    for body in [chat("hello", 2, false), chat("hello", 2, true), "no chain".to_owned()] {
        client::chat(proxy.address, &body).await;
    }
    proxy.becomes_idle().await;
    let answer = client::get(proxy.admin, "/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4");
    let text = answer.text();
    let exported: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let docs = std::fs::read_to_string(workspace().join("docs/metrics.md")).unwrap();
    let mut documented = documented_metrics(&docs);
    documented.retain(|name| exported.contains(name.as_str()) || !is_elsewhere(name));
    assert_eq!(exported, documented.iter().map(String::as_str).collect());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
    }
}

#[tokio::test]
async fn labels_name_pool_code_and_endpoint() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    client::chat(proxy.address, &chat("hello", 2, false)).await;
    client::chat(proxy.address, "no chain").await;
    client::get(proxy.address, "/v1/completions").await;
    let endpoint = format!("endpoint=\"{}\"", engine.name());
    for (name, labels, value) in [
        ("larder_requests_total", vec!["pool=\"mock\"", "code=\"200\""], 1.0),
        ("larder_requests_total", vec!["pool=\"mock\"", "code=\"400\""], 1.0),
        ("larder_requests_total", vec!["pool=\"\"", "code=\"405\""], 1.0),
        ("larder_no_chain_total", vec!["reason=\"not_json\""], 1.0),
        ("larder_decisions_total", vec!["pool=\"mock\""], 2.0),
        ("larder_overhead_seconds_count", vec![], 2.0),
        ("larder_endpoint_up", vec!["pool=\"mock\"", &endpoint], 1.0),
        ("larder_in_flight_requests", vec!["pool=\"mock\"", &endpoint], 0.0),
    ] {
        assert_eq!(proxy.metric(name, &labels).await, value, "{name} {labels:?}");
    }
    assert!(proxy.metric("larder_index_bytes", &["pool=\"mock\""]).await > 0.0);
}

#[tokio::test]
async fn only_reading_is_served_and_only_there() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    assert_eq!(client::get(proxy.admin, "/nothing").await.status, StatusCode::NOT_FOUND);
    assert_eq!(client::post(proxy.admin, "/metrics", "x").await.status, StatusCode::METHOD_NOT_ALLOWED);
    let request = "HEAD /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut client = Raw::send(proxy.admin, request).await;
    let head = client.head().await.unwrap();
    assert_eq!((head.status, head.value("content-length")), (200, "3"));
    assert!(client.to_end().await.0.is_empty());
    // The admin plane is not on the clients' side, nor is the engines'.
    let version = client::get(proxy.address, "/readyz").await;
    assert_eq!(
        (version.status, version.header("x-larder-endpoint")),
        (StatusCode::NOT_FOUND, &*engine.name())
    );
    assert_eq!(client::get(proxy.address, "/metrics").await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_scraper_keeps_its_connection() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    let mut scraper = client::Connection::open(proxy.admin, Framing::Length).await;
    for _ in 0..3 {
        let request = http::Request::get("/metrics").body(bytes::Bytes::new()).unwrap();
        let answer = scraper.send(request).await.unwrap().rest().await.unwrap();
        assert!(answer.text().contains("larder_endpoint_up"));
    }
}
