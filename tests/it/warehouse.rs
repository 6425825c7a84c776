//! Is what lies in a warehouse weighed when an endpoint is chosen, and is a wrong belief about it harmless?

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use larder_tests::client::{self, Answer, Framing};
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Proxy, chat, config, prose};
use serde_json::json;

/// Nobody is held back, and prefill is so slow that a request in flight keeps its engine busy for the whole test.
const SLOW: &str = "[routing]\nhold_limit = \"0s\"\ndefault_prefill_tokens_per_s = 100.0\n";
/// A prompt of so many tokens at 4 bytes each.
const TOKENS: u64 = 20_000;
const LEASE: &str = "00000000000000aa00000000000000bb";
const HANG: &str = "do not answer this";

/// Engines that answer at once, but never what says [`HANG`].
async fn engine() -> Scripted {
    Scripted::start(|seen| {
        if String::from_utf8_lossy(&seen.body).contains(HANG) {
            (Vec::new(), Then::Hang)
        } else {
            (ok("{}"), Then::Next)
        }
    })
    .await
}

/// A cache node that has everything or nothing.
async fn node(has: &Arc<AtomicBool>) -> Scripted {
    let has = Arc::clone(has);
    Scripted::start(move |_| {
        let answer = if has.load(Ordering::Relaxed) {
            json!({"lease": LEASE, "tokens_ready": TOKENS, "chunks": 1, "bytes": 1, "reason": "staged"})
        } else {
            json!({"lease": null, "tokens_ready": 0, "chunks": 0, "bytes": 0, "reason": "not_held"})
        };
        (ok(&answer.to_string()), Then::Next)
    })
    .await
}

/// The config with a node beside each endpoint.
pub(crate) fn beside_each(text: &str, node: SocketAddr) -> String {
    let line = |line: &str| match line.starts_with("url = ") {
        true => format!("{line}\ncache_node = \"http://{node}\"\n"),
        false => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

struct World {
    engines: [Scripted; 2],
    proxy: Proxy,
    /// The prompt, which one of them holds.
    warm: String,
    holder: String,
}

impl World {
    /// One engine has answered a long prompt, and is busy for 80 s with something that begins with it; `node`
    /// stands beside both, and has what was computed.
    async fn start(node: Option<(&Scripted, &AtomicBool)>) -> Self {
        let engines = [engine().await, engine().await];
        let text = config(&[engines[0].address, engines[1].address], SLOW);
        let text = node.map_or(text.clone(), |(node, _)| beside_each(&text, node.address));
        let proxy = Proxy::start_with(&text).await;
        let words = prose(TOKENS as usize * 4, 1);
        let warm = chat(&words, 2, false);
        let first = client::chat(proxy.address, &warm).await;
        assert_eq!(first.status, 200, "{}", first.text());
        let holder = first.header("x-larder-endpoint").to_owned();
        proxy.becomes_idle().await;
        if let Some((_, has)) = node {
            has.store(true, Ordering::Relaxed);
        }
        let longer = chat(&format!("{words} {} {HANG}", prose(32_000, 2)), 2, true);
        let hanging = client::json_request("/v1/chat/completions", &longer);
        let address = proxy.address;
        tokio::spawn(async move { client::open(address, hanging, Framing::Length).await });
        proxy.metric_becomes("larder_in_flight_requests", &[&holder], 1.0).await;
        Self { engines, proxy, warm, holder }
    }

    async fn again(&self) -> Answer {
        let answer = client::chat(self.proxy.address, &self.warm).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer
    }

    async fn last_decision(&self) -> serde_json::Value {
        client::get_json(self.proxy.admin, "/v1/decisions").await["decisions"][0].clone()
    }
}

#[tokio::test]
async fn a_prompt_that_is_warehoused_goes_where_load_is_less_and_is_staged_there() {
    let has = Arc::new(AtomicBool::new(false));
    let node = node(&has).await;
    let world = World::start(Some((&node, &has))).await;
    let explained = client::post(world.proxy.admin, "/v1/explain", &world.warm).await.json();
    let best = &explained["candidates"][0];
    assert_ne!(best["endpoint"], world.holder, "{explained}");
    assert!(best["fetch_tokens"].as_u64().unwrap() > TOKENS * 9 / 10, "{explained}");

    let answer = world.again().await;
    assert_ne!(answer.header("x-larder-endpoint"), world.holder);
    assert_eq!(answer.header("x-larder-staged-tokens"), TOKENS.to_string());
    let decision = world.last_decision().await;
    assert_eq!((&decision["matched_tokens"], &decision["staged_tokens"]), (&json!(0), &json!(TOKENS)));
    assert!(decision["fetch_tokens"].as_u64().unwrap() > TOKENS * 9 / 10, "{decision}");
    assert!(decision["fetch_s"].as_f64().unwrap() < 1.0, "{decision}");
    let other = world.engines.iter().find(|e| e.address.to_string() != world.holder).unwrap();
    assert!(String::from_utf8_lossy(&other.last().body).contains(LEASE));
}

/// The control: 80 seconds of waiting are less than 200 of computing.
#[tokio::test]
async fn without_a_warehouse_it_goes_to_the_holder() {
    let world = World::start(None).await;
    let answer = world.again().await;
    assert_eq!(answer.header("x-larder-endpoint"), world.holder);
    let decision = world.last_decision().await;
    assert_eq!((&decision["fetch_tokens"], &decision["staged_tokens"]), (&json!(0), &json!(null)));
}

#[tokio::test]
async fn a_node_that_lost_it_costs_speed_and_is_not_believed_again() {
    let has = Arc::new(AtomicBool::new(false));
    let node = node(&has).await;
    let world = World::start(Some((&node, &has))).await;
    has.store(false, Ordering::Relaxed);
    let answer = world.again().await;
    assert_ne!(answer.header("x-larder-endpoint"), world.holder);
    assert_eq!(answer.header("x-larder-staged-tokens"), "0");
    let decision = world.last_decision().await;
    assert!(decision["fetch_tokens"].as_u64().unwrap() > TOKENS * 9 / 10, "{decision}");
    assert_eq!(decision["staged_tokens"], json!(0));
    let other = world.engines.iter().find(|e| e.address.to_string() != world.holder).unwrap();
    assert!(!String::from_utf8_lossy(&other.last().body).contains(LEASE));
}

#[tokio::test]
async fn a_node_that_is_gone_costs_speed_only() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let engines = [engine().await, engine().await];
    let text = config(&[engines[0].address, engines[1].address], SLOW);
    let proxy = Proxy::start_with(&beside_each(&text, address)).await;
    let warm = chat(&prose(TOKENS as usize * 4, 1), 2, false);
    for _ in 0..4 {
        let answer = client::chat(proxy.address, &warm).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // The second and later ones go to whoever answered the first.
    let decisions = client::get_json(proxy.admin, "/v1/decisions").await;
    let names: Vec<_> =
        decisions["decisions"].as_array().unwrap().iter().map(|d| d["endpoint"].clone()).collect();
    assert!(names.iter().all(|name| *name == names[0]), "{decisions}");
}
