//! Requests that wait for their turn at a busy engine: who goes first, what bounds them, and what happens when the
//! client leaves meanwhile.

use std::sync::Arc;
use std::time::Duration;

use larder_tests::client::{self, Framing, json_request};
use larder_tests::raw::Raw;
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Engine, Proxy, chat, config, prose};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::limits::assert_refusal;

const CHAT: &str = "/v1/chat/completions";
const HELD: &str = "larder_held_requests";
const IN_FLIGHT: &str = "larder_in_flight_requests";
const ERRORS: &str = "larder_upstream_errors_total";
/// The proxy takes a prompt of 4,000 bytes for a quarter of an hour of prefill: one makes an engine busy for the test.
const SLOW: &str = "[routing]\ndefault_prefill_tokens_per_s = 1.0\n";

fn prompt(seed: u64) -> String {
    chat(&prose(4_000, seed), 2, true)
}

fn ask(proxy: &Proxy, body: &str, framing: Framing) -> JoinHandle<()> {
    let (address, request) = (proxy.address, json_request(CHAT, body));
    tokio::spawn(async move {
        let _ = client::try_send(address, request, framing).await;
    })
}

/// A proxy before one engine, and a request that keeps it busy until it is aborted.
async fn busy(engine: &Engine, routing: &str) -> (Proxy, JoinHandle<()>) {
    let proxy = Proxy::start(&[engine], &format!("{SLOW}{routing}")).await;
    let hog = occupy(&proxy, engine).await;
    (proxy, hog)
}

async fn occupy(proxy: &Proxy, engine: &Engine) -> JoinHandle<()> {
    engine.fault(json!({"kind": "hang", "count": 1})).await;
    let hog = ask(proxy, &prompt(0), Framing::Length);
    proxy.metric_becomes(IN_FLIGHT, &[], 1.0).await;
    hog
}

#[tokio::test]
async fn the_held_go_when_the_engine_is_free() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let (proxy, hog) = busy(&engine, "").await;
    let waits =
        tokio::spawn(client::try_send(proxy.address, json_request(CHAT, &prompt(1)), Framing::Chunked));
    proxy.metric_becomes(HELD, &[], 1.0).await;
    assert_eq!(proxy.metric(IN_FLIGHT, &[]).await, 1.0);
    hog.abort();
    assert_eq!(waits.await.unwrap().unwrap().status, 200);
    proxy.becomes_idle().await;
    assert_eq!(proxy.metric(HELD, &[]).await, 0.0);
    assert_eq!(proxy.metric("larder_held_seconds_count", &[]).await, 1.0);
}

#[tokio::test]
async fn a_hit_overtakes_a_miss() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], &format!("{SLOW}hold_limit = \"1h\"\n")).await;
    let warm = prose(4_000, 7);
    assert_eq!(client::chat(proxy.address, &chat(&warm, 2, true)).await.status, 200);
    let hog = occupy(&proxy, &engine).await;
    let miss = ask(&proxy, &prompt(1), Framing::Length);
    proxy.metric_becomes(HELD, &[], 1.0).await;
    // Enough is new for its turn to be over before the next one's begins.
    let hit = ask(&proxy, &chat(&format!("{warm} and {}", prose(1_000, 8)), 2, true), Framing::Length);
    proxy.metric_becomes(HELD, &[], 2.0).await;
    hog.abort();
    hit.await.unwrap();
    miss.await.unwrap();
    let last = engine.last().await;
    let bytes = larder_tests::world::logged_values(&last, "content-length");
    assert_eq!(bytes, [prompt(1).len().to_string()], "the miss came last");
}

/// The negative control: without holding, they go in the order of arrival.
#[tokio::test]
async fn nobody_is_held_with_a_limit_of_zero() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let (proxy, hog) = busy(&engine, "hold_limit = \"0s\"\n").await;
    assert_eq!(client::chat(proxy.address, &prompt(1)).await.status, 200);
    assert_eq!(proxy.metric("larder_held_seconds_count", &[]).await, 0.0);
    hog.abort();
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn a_held_client_that_leaves_gives_up_its_place() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let (proxy, hog) = busy(&engine, "").await;
    for (n, framing) in (1..).zip(Framing::ALL) {
        let waits = ask(&proxy, &prompt(n), framing);
        proxy.metric_becomes(HELD, &[], 1.0).await;
        waits.abort();
        proxy.metric_becomes(HELD, &[], 0.0).await;
        assert_eq!(proxy.metric("larder_client_aborts_total", &[]).await, n as f64, "{framing:?}");
    }
    hog.abort();
    proxy.becomes_idle().await;
    assert_eq!(engine.requests().await.len(), 1, "the engine saw none of them");
}

fn raw_chat(body: &str) -> String {
    format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_held_client_that_closes_its_half_counts_as_gone() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let (proxy, hog) = busy(&engine, "").await;
    let mut waits = Raw::send(proxy.address, raw_chat(&prompt(1))).await;
    proxy.metric_becomes(HELD, &[], 1.0).await;
    waits.stream.shutdown().await.unwrap();
    proxy.metric_becomes(HELD, &[], 0.0).await;
    hog.abort();
    proxy.becomes_idle().await;
    assert_eq!(engine.requests().await.len(), 1);
}

/// Bytes of a next request keep the connection from being read, so that its end is not seen before its turn comes:
/// the place is kept until then, and everything is released after.
#[tokio::test]
async fn a_held_client_with_pipelined_bytes_is_released_with_its_turn_at_the_latest() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let (proxy, hog) = busy(&engine, "").await;
    let both = format!("{}{}", raw_chat(&prompt(1)), raw_chat(&prompt(2)));
    let waits = Raw::send(proxy.address, both).await;
    proxy.metric_becomes(HELD, &[], 1.0).await;
    waits.stream.set_zero_linger().unwrap();
    drop(waits);
    tokio::time::sleep(Duration::from_millis(200)).await;
    hog.abort();
    proxy.metric_becomes(HELD, &[], 0.0).await;
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn too_many_are_refused_and_told_when_to_come_again() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let (proxy, hog) = busy(&engine, "max_held = 1\n").await;
    let waits = ask(&proxy, &prompt(1), Framing::Length);
    proxy.metric_becomes(HELD, &[], 1.0).await;
    for framing in Framing::ALL {
        let answer = client::send(proxy.address, json_request(CHAT, &prompt(2)), framing).await;
        assert_refusal(&answer, 429, "queue_full");
        let seconds: u32 = answer.header("retry-after").parse().unwrap();
        assert!((60..=600).contains(&seconds), "{seconds}");
    }
    waits.abort();
    hog.abort();
    proxy.becomes_idle().await;
    assert_eq!(client::chat(proxy.address, &prompt(2)).await.status, 200);
}

#[tokio::test]
async fn the_held_go_elsewhere_when_their_engine_dies() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], SLOW).await;
    let mut hogs = Vec::new();
    for engine in &engines {
        engine.fault(json!({"kind": "hang", "count": 1})).await;
    }
    for (n, session) in [(1.0, 10), (2.0, 11)] {
        hogs.push(ask(&proxy, &prompt(session), Framing::Length));
        proxy.metric_becomes(IN_FLIGHT, &[], n).await;
    }
    let waits = (0..2).map(|n| ask(&proxy, &prompt(20 + n), Framing::Length)).collect::<Vec<_>>();
    proxy.metric_becomes(HELD, &[], 2.0).await;
    // It stands still before it is gone. Killed at once, what it was doing would break off and free the place, and one who
    // waits could be sent in the instant in which its port still answers; such a request may have begun and is not repeated.
    engines[0].freeze();
    proxy.metric_becomes("larder_endpoint_up", &[], 1.0).await;
    engines[0].kill().await;
    hogs.iter().for_each(JoinHandle::abort);
    for wait in waits {
        wait.await.unwrap();
    }
    assert_eq!(engines[1].stat("finished").await, 2);
    proxy.becomes_idle().await;
}

/// A proxy before two engines, a request that hangs at each of them, and four that wait.
async fn both_busy(engines: &[Engine; 2], extra: &str) -> (Proxy, Vec<JoinHandle<()>>, Vec<JoinHandle<()>>) {
    let proxy = Proxy::start(&[&engines[0], &engines[1]], extra).await;
    let mut hogs = Vec::new();
    for engine in engines {
        engine.fault(json!({"kind": "hang", "count": 1})).await;
    }
    for n in 1..=2 {
        hogs.push(ask(&proxy, &prompt(n), Framing::Length));
        proxy.metric_becomes(IN_FLIGHT, &[], n as f64).await;
    }
    let waits = (0..4).map(|n| ask(&proxy, &prompt(20 + n), Framing::Length)).collect();
    proxy.metric_becomes(HELD, &[], 4.0).await;
    (proxy, hogs, waits)
}

/// With checks so seldom that only requests tell: its breaker opens by the one that its death breaks off.
#[tokio::test]
async fn the_held_are_not_tried_at_an_engine_that_is_left_alone() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let extra = format!(
        "[health]\ninterval = \"1h\"\n[breaker]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n{SLOW}"
    );
    let (proxy, hogs, waits) = both_busy(&engines, &extra).await;
    engines[0].kill().await;
    proxy.metric_becomes("larder_endpoint_ejected", &[], 1.0).await;
    hogs.iter().for_each(JoinHandle::abort);
    for wait in waits {
        wait.await.unwrap();
    }
    assert_eq!(engines[1].stat("finished").await, 4);
    let tried = proxy.metric("larder_upstream_errors_total", &["kind=\"connect\""]).await;
    assert_eq!(tried, 0.0, "nobody was sent to the dead one");
    proxy.becomes_idle().await;
}

/// With no breaker and checks so seldom that only requests tell: the exchange that its death breaks off frees a place at a
/// dying engine, and nobody who waits is sent there, not even in the instant in which its port still answers.
#[tokio::test]
async fn nobody_who_waits_is_sent_into_a_dying_engine() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let extra = format!("[health]\ninterval = \"1h\"\n[breaker]\nfailures = 0\n{SLOW}");
    let (proxy, hogs, waits) = both_busy(&engines, &extra).await;
    engines[0].kill().await;
    proxy.metric_becomes(ERRORS, &[&engines[0].name()], 1.0).await;
    hogs.iter().for_each(JoinHandle::abort);
    for wait in waits {
        wait.await.unwrap();
    }
    assert_eq!(engines[1].stat("finished").await, 4);
    assert_eq!(proxy.metric(ERRORS, &[]).await, 1.0, "what it was doing, and nothing else");
    proxy.becomes_idle().await;
}

/// Where there is no other engine, the next waits until a check was answered.
#[tokio::test]
async fn whoever_waits_for_the_only_engine_goes_when_it_has_shown_that_it_lives() {
    let breaks = Arc::new(Notify::new());
    let told = Arc::clone(&breaks);
    let engine = Scripted::start(move |seen| match seen.checks {
        // Those of the start: models, metrics, and health twice at most.
        ..4 => (Vec::new(), Then::CloseWhen(Arc::clone(&told))),
        _ => (ok("{}"), Then::Next),
    })
    .await;
    let extra = format!("[health]\ninterval = \"1h\"\n[breaker]\nfailures = 0\n{SLOW}");
    let proxy = Proxy::start_with(&config(&[engine.address], &extra)).await;
    let hog = ask(&proxy, &prompt(0), Framing::Length);
    proxy.metric_becomes(IN_FLIGHT, &[], 1.0).await;
    let request = json_request(CHAT, &prompt(1));
    let waits = tokio::spawn(client::try_send(proxy.address, request, Framing::Length));
    proxy.metric_becomes(HELD, &[], 1.0).await;
    breaks.notify_one();
    assert_eq!(waits.await.unwrap().unwrap().status, 200);
    hog.await.unwrap();
    let checks: Vec<usize> = engine.seen().iter().map(|seen| seen.checks).collect();
    assert_eq!(checks, [3, 4], "one check between the two");
    assert_eq!(proxy.metric(ERRORS, &[]).await, 1.0);
    proxy.becomes_idle().await;
}
