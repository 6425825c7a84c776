//! Are the bounds on requests in flight kept, for each endpoint and for all, and what happens to those beyond?

use larder_tests::client::{self, Exchange, Framing, json_request};
use larder_tests::world::{Engine, MODEL, Proxy, chat, config_of_pools, prose};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::limits::assert_refusal;

const CHAT: &str = "/v1/chat/completions";
const HELD: &str = "larder_held_requests";
const IN_FLIGHT: &str = "larder_in_flight_requests";

fn ask(proxy: &Proxy, seed: u64) -> JoinHandle<u16> {
    let (address, request) = (proxy.address, json_request(CHAT, &chat(&prose(200, seed), 2, true)));
    tokio::spawn(async move {
        client::try_send(address, request, Framing::Length).await.map_or(0, |answer| answer.status.as_u16())
    })
}

/// A request whose first token came and whose end does not.
async fn stays(proxy: &Proxy, engines: &[Engine], seed: u64) -> Exchange {
    for engine in engines {
        engine.fault(json!({"kind": "hang", "chunks": 1, "count": 1})).await;
    }
    let mut exchange =
        client::open(proxy.address, json_request(CHAT, &chat(&prose(200, seed), 20, true)), Framing::Length)
            .await;
    exchange.piece().await.unwrap().unwrap();
    exchange
}

/// The same prompt each time, so that all would go to one engine; under every policy, since all keep the bound.
#[tokio::test]
async fn a_full_endpoint_is_passed_over_and_the_rest_wait_their_turn() {
    for policy in ["larder", "round_robin", "session_hash", "min_ttft"] {
        let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
        let extra = format!("[limits]\nmax_in_flight_per_endpoint = 1\n[routing]\npolicy = \"{policy}\"\n");
        let proxy = Proxy::start(&[&engines[0], &engines[1]], &extra).await;
        let first = stays(&proxy, &engines, 1).await;
        let _second = stays(&proxy, &engines, 1).await;
        for engine in &engines {
            assert_eq!(engine.requests().await.len(), 1, "{policy}");
            engine.fault(json!({"kind": "none"})).await;
        }
        let third = ask(&proxy, 1);
        proxy.metric_becomes(HELD, &[], 1.0).await;
        drop(first);
        assert_eq!(third.await.unwrap(), 200, "{policy}");
        assert_eq!(proxy.metric(IN_FLIGHT, &[]).await, 1.0, "{policy}");
    }
}

/// The negative control: without the bound all are sent at once.
#[tokio::test]
async fn without_a_bound_nobody_waits_for_an_engine_that_decodes() {
    let engine = [Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engine[0]], "").await;
    let _first = stays(&proxy, &engine, 1).await;
    engine[0].fault(json!({"kind": "none"})).await;
    assert_eq!(ask(&proxy, 2).await.unwrap(), 200);
    assert_eq!(proxy.metric("larder_held_seconds_count", &[]).await, 0.0);
}

#[tokio::test]
async fn an_endpoints_own_bound_goes_before_that_of_all() {
    let engine = [Engine::start(&["--time-scale=1000"])];
    let pool = config_of_pools(
        &[(&format!("model = \"{MODEL}\""), &[engine[0].address])],
        "[limits]\nmax_in_flight_per_endpoint = 1",
    );
    let proxy = Proxy::start_with(&format!("{pool}max_in_flight = 2\n")).await;
    let _first = stays(&proxy, &engine, 1).await;
    let _second = stays(&proxy, &engine, 2).await;
    let third = ask(&proxy, 3);
    proxy.metric_becomes(HELD, &[], 1.0).await;
    third.abort();
    proxy.metric_becomes(HELD, &[], 0.0).await;
}

#[tokio::test]
async fn by_load_alone_nobody_is_held_so_that_all_full_is_told() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let extra = "[limits]\nmax_in_flight_per_endpoint = 1\n[routing]\npass_through = true\n";
    let proxy = Proxy::start(&[&engines[0], &engines[1]], extra).await;
    let first = stays(&proxy, &engines, 1).await;
    let second = stays(&proxy, &engines, 2).await;
    let answer = client::chat(proxy.address, &chat("x", 2, false)).await;
    assert_refusal(&answer, 503, "no_endpoint");
    assert_eq!(answer.header("retry-after"), "1");
    assert!(answer.text().contains("2 with all the requests"), "{}", answer.text());
    drop((first, second));
    proxy.becomes_idle().await;
    engines[0].fault(json!({"kind": "none"})).await;
    engines[1].fault(json!({"kind": "none"})).await;
    assert_eq!(ask(&proxy, 3).await.unwrap(), 200);
}

#[tokio::test]
async fn one_more_than_the_proxy_may_have_is_told_to_come_again() {
    let engine = [Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engine[0]], "[limits]\nmax_in_flight = 2\n").await;
    let first = stays(&proxy, &engine, 1).await;
    let second = stays(&proxy, &engine, 2).await;
    engine[0].fault(json!({"kind": "none"})).await;
    for framing in Framing::ALL {
        let request = json_request(CHAT, &chat(&prose(300_000, 3), 2, false));
        let answer = client::send(proxy.address, request, framing).await;
        assert_refusal(&answer, 503, "overloaded");
        assert_eq!(answer.header("retry-after"), "1", "{framing:?}");
    }
    // What needs no engine has a place all the same.
    assert_eq!(client::get(proxy.address, "/v1/models").await.status, 200);
    drop(first);
    proxy.metric_becomes(IN_FLIGHT, &[], 1.0).await;
    for n in 4..8 {
        assert_eq!(ask(&proxy, n).await.unwrap(), 200, "each gives its place back");
        proxy.metric_becomes(IN_FLIGHT, &[], 1.0).await;
    }
    drop(second);
    proxy.becomes_idle().await;
}

/// Six requests that stay, after one of two engines came back.
async fn wave_after_return(routing: &str) -> Vec<f64> {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let checks = "[health]\ninterval = \"50ms\"\nunhealthy_after = 1\n";
    let extra = format!("{checks}[routing]\n{routing}");
    let proxy = Proxy::start(&[&engines[0], &engines[1]], &extra).await;
    engines[1].fault(json!({"kind": "refuse", "delay_s": 2.0})).await;
    proxy.metric_becomes("larder_endpoint_up", &[], 1.0).await;
    proxy.metric_becomes("larder_endpoint_up", &[], 2.0).await;
    let mut all = Vec::new();
    for n in 0..6 {
        all.push(stays(&proxy, &engines, n).await);
    }
    let mut at = Vec::new();
    for engine in &engines {
        at.push(proxy.metric(IN_FLIGHT, &[&engine.name()]).await);
    }
    at
}

#[tokio::test]
async fn an_engine_that_comes_back_is_not_given_all_at_once() {
    for mode in ["policy = \"round_robin\"\n", "pass_through = true\n", "shadow = true\n"] {
        assert_eq!(wave_after_return(&format!("{mode}slow_start = \"1h\"\n")).await, [5.0, 1.0], "{mode}");
        // The negative control.
        assert_eq!(wave_after_return(&format!("{mode}slow_start = \"0s\"\n")).await, [3.0, 3.0], "{mode}");
    }
}

#[tokio::test]
async fn the_first_byte_has_its_limit_by_model() {
    let engines = [Engine::start(&[]), Engine::start(&[])];
    let addresses = [[engines[0].address], [engines[1].address]];
    let pools = [
        ("model = \"quick\"\nfirst_byte = \"100ms\"", &addresses[0][..]),
        ("model = \"slow\"", &addresses[1][..]),
    ];
    let proxy = Proxy::start_with(&config_of_pools(&pools, "")).await;
    for engine in &engines {
        engine.fault(json!({"kind": "hang"})).await;
    }
    let of = |model: &str| json_request(CHAT, &chat("x", 2, false).replace(MODEL, model));
    let (address, request) = (proxy.address, of("slow"));
    let slow = tokio::spawn(async move { client::send(address, request, Framing::Length).await.status });
    proxy.metric_becomes(IN_FLIGHT, &["pool=\"slow\""], 1.0).await;
    let answer = client::send(proxy.address, of("quick"), Framing::Length).await;
    assert_refusal(&answer, 504, "engine_timeout");
    assert!(answer.text().contains("100 ms"), "{}", answer.text());
    assert!(!slow.is_finished(), "the other goes by the limit of all");
    slow.abort();
    proxy.becomes_idle().await;
}
