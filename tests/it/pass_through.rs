//! Can the decision core be switched off and on under way?

use http::StatusCode;
use larder_tests::client;
use larder_tests::world::{Engine, Proxy, chat, prose};

#[tokio::test]
async fn the_switch_sends_by_load_alone_and_back() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    let body = chat(&prose(8_000, 1), 2, false);
    let matched = async || -> u64 {
        let answer = client::chat(proxy.address, &body).await;
        assert_eq!(answer.status, StatusCode::OK);
        proxy.becomes_idle().await;
        answer.header("x-larder-matched-tokens").parse().unwrap()
    };
    assert_eq!(matched().await, 0);
    assert!(matched().await > 1_000);
    let switch = async |query: &str| client::post(proxy.admin, &format!("/v1/pass-through{query}"), "").await;
    assert_eq!(switch("?on=true").await.status, StatusCode::OK);
    let by_load = "reason=\"least_load\"";
    assert_eq!(matched().await, 0);
    assert_eq!(matched().await, 0);
    assert_eq!(proxy.metric("larder_decisions_total", &[by_load]).await, 2.0);
    assert_eq!(switch("").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(switch("?on=false").await.status, StatusCode::OK);
    assert!(matched().await > 1_000, "what was known is known again");
    assert_eq!(proxy.metric("larder_decisions_total", &[by_load]).await, 2.0);
}

#[tokio::test]
async fn it_can_be_on_from_the_start_and_goes_around_dead_engines() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "[routing]\npass_through = true\n").await;
    engines[0].kill().await;
    for n in 0..4 {
        let answer = client::chat(proxy.address, &chat(&prose(100, n), 2, false)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.header("x-larder-endpoint"), engines[1].name());
    }
    engines[1].kill().await;
    proxy.metric_becomes("larder_endpoint_up", &[], 0.0).await;
    let answer = client::chat(proxy.address, &chat("x", 2, false)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
    proxy.becomes_idle().await;
}
