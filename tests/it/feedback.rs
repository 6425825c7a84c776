//! Does what engines report about their caches correct the proxy, and can a wrong report do harm?

use larder_tests::client::{self, Answer};
use larder_tests::world::{Engine, MODEL, Proxy, chat, prose};
use serde_json::json;

const PREDICTED: &str = "larder_predicted_cached_tokens_total";
const ACTUAL: &str = "larder_actual_cached_tokens_total";

fn cached(answer: &Answer) -> u64 {
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn matched(answer: &Answer) -> u64 {
    answer.header("x-larder-matched-tokens").parse().unwrap()
}

async fn ask(proxy: &Proxy, body: &str) -> (u64, u64) {
    let answer = client::chat(proxy.address, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    (matched(&answer), cached(&answer))
}

/// Within a run of 512 bytes, 128 tokens, and what the template adds.
fn agree((matched, cached): (u64, u64)) -> bool {
    matched.abs_diff(cached) < 200
}

#[tokio::test]
async fn a_cache_that_was_reset_is_known_again_after_one_request() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(8000, 1), 2, false);
    assert_eq!(ask(&proxy, &body).await, (0, 0));
    let warm = ask(&proxy, &body).await;
    assert!(warm.1 > 1900 && agree(warm), "{warm:?}");
    assert_eq!(client::post(engine.address, "/reset_prefix_cache", "").await.status, 200);
    let (matched, cached) = ask(&proxy, &body).await;
    assert!(matched > 1800 && cached == 0, "a wrong hint costs time, never an answer: {matched} {cached}");
    let healed = ask(&proxy, &body).await;
    assert!(healed.1 > 1900 && agree(healed), "{healed:?}");
    proxy.becomes_idle().await;
    let (predicted, actual) = (proxy.metric(PREDICTED, &[]).await, proxy.metric(ACTUAL, &[]).await);
    assert_eq!(actual as u64, warm.1 + healed.1);
    assert_eq!(predicted as u64, warm.0 + matched + healed.0);
}

#[tokio::test]
async fn an_engine_that_denies_its_cache_loses_trust_and_regains_it() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(8000, 1), 1, false);
    ask(&proxy, &body).await;
    engine.fault(json!({"kind": "lie_cached", "cached_tokens": 0})).await;
    let mut asked = 0;
    while ask(&proxy, &body).await.0 > 0 {
        asked += 1;
        assert!(asked < 400, "the proxy goes on promising what the engine denies");
    }
    engine.fault(json!({"kind": "none"})).await;
    let mut asked = 0;
    while !agree(ask(&proxy, &body).await) {
        asked += 1;
        assert!(asked < 400, "the proxy does not believe the engine again");
    }
}

#[tokio::test]
async fn an_engine_that_boasts_does_no_harm() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    for engine in &engines {
        engine.fault(json!({"kind": "lie_cached", "cached_tokens": u32::MAX})).await;
    }
    for n in 0..50 {
        let answer = client::chat(proxy.address, &chat(&prose(8000, n % 5), 1, n % 2 == 0)).await;
        assert_eq!(answer.status, 200);
    }
    for engine in &engines {
        engine.fault(json!({"kind": "none"})).await;
    }
    for n in 0..5 {
        let body = chat(&prose(8000, n), 1, false);
        let answer = ask(&proxy, &body).await;
        assert!(agree(answer), "prompt {n}: {answer:?}");
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn engines_that_say_nothing_are_counted_and_affinity_stays() {
    let engines: Vec<Engine> =
        (0..3).map(|_| Engine::start_with("127.0.0.1:0", &["--model", MODEL, "--time-scale=1000"])).collect();
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), "").await;
    let body = chat(&prose(8000, 1), 2, false);
    let first = client::chat(proxy.address, &body).await;
    assert!(first.json()["usage"]["prompt_tokens_details"].is_null(), "{}", first.text());
    for _ in 0..4 {
        let answer = client::chat(proxy.address, &body).await;
        assert_eq!(answer.header("x-larder-endpoint"), first.header("x-larder-endpoint"));
        assert!(matched(&answer) > 1000);
    }
    proxy.becomes_idle().await;
    assert_eq!(proxy.metric("larder_usage_missing_total", &[]).await, 5.0);
    assert_eq!(proxy.metric(ACTUAL, &[]).await, 0.0);
}

#[tokio::test]
async fn null_for_nothing_cached_is_understood() {
    let engine = Engine::start(&["--time-scale=1000", "--null-when-uncached"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(8000, 1), 2, false);
    assert_eq!(client::chat(proxy.address, &body).await.status, 200);
    let warm = ask(&proxy, &body).await;
    assert!(warm.1 > 1900 && agree(warm), "{warm:?}");
}

#[tokio::test]
async fn the_capacity_that_engines_report_is_used() {
    let engines = [Engine::start(&["--kv-tokens=64000"]), Engine::start(&["--kv-tokens=32000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    for (engine, tokens) in engines.iter().zip([64_000.0, 32_000.0]) {
        let label = format!("endpoint=\"{}\"", engine.name());
        assert_eq!(proxy.metric("larder_kv_capacity_tokens", &[&label]).await, tokens);
    }
}

/// An engine without the flag that makes it tell: the log names it and the flag, once, and a metric shows it.
#[tokio::test]
async fn an_engine_that_never_tells_is_named_with_the_flag_to_add() {
    let engine = Engine::start_with("127.0.0.1:0", &["--model", MODEL, "--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    let body = chat(&prose(8000, 1), 1, false);
    for _ in 0..40 {
        assert_eq!(client::chat(proxy.address, &body).await.status, 200);
    }
    assert_eq!(proxy.metric("larder_endpoint_trusted", &[]).await, 0.0);
    let log = proxy.program.log();
    assert_eq!(log.matches("--enable-prompt-tokens-details").count(), 1, "{log}");
    assert!(log.contains(&engine.name()), "{log}");
}
