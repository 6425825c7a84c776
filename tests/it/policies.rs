//! Does each policy do what its name says?

use std::collections::{BTreeMap, BTreeSet};

use larder_tests::client::{self, Answer, Framing, json_request};
use larder_tests::world::{Engine, Proxy, chat, prose};

const DECISIONS: &str = "larder_decisions_total";

fn policy(name: &str) -> String {
    format!("[routing]\npolicy = \"{name}\"\n")
}

fn quick(count: usize) -> Vec<Engine> {
    (0..count).map(|_| Engine::start(&["--time-scale=1000"])).collect()
}

fn endpoint(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-larder-endpoint").to_owned()
}

async fn in_session(proxy: &Proxy, header: &str, session: &str, prompt: &str) -> String {
    let mut request = json_request("/v1/chat/completions", &chat(prompt, 2, false));
    request.headers_mut().insert(header.parse::<http::HeaderName>().unwrap(), session.parse().unwrap());
    endpoint(&client::send(proxy.address, request, Framing::Length).await)
}

#[tokio::test]
async fn round_robin_takes_turns_whatever_the_prompt() {
    let engines = quick(3);
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), &policy("round_robin")).await;
    let mut turns = Vec::new();
    for _ in 0..9 {
        turns.push(endpoint(&client::chat(proxy.address, &chat("always the same", 2, false)).await));
    }
    assert_eq!(turns.iter().take(3).collect::<BTreeSet<_>>().len(), 3, "{turns:?}");
    assert!((3..9).all(|n| turns[n] == turns[n - 3]), "{turns:?}");
    assert_eq!(proxy.metric(DECISIONS, &["reason=\"round_robin\""]).await, 9.0);
}

#[tokio::test]
async fn session_hash_keeps_a_session_at_its_engine_on_every_proxy() {
    let engines = quick(3);
    let all = engines.iter().collect::<Vec<_>>();
    let first = Proxy::start(&all, &policy("session_hash")).await;
    let second = Proxy::start(&all, &format!("{}session_header = \"x-user\"", policy("session_hash"))).await;
    let mut homes = BTreeMap::new();
    for turn in 0..3 {
        for session in 0..12 {
            let name = format!("user-{session}");
            let here = in_session(&first, "x-session-id", &name, &format!("{turn} {session}")).await;
            let home = homes.entry(session).or_insert_with(|| here.clone());
            assert_eq!(*home, here, "session {session}");
        }
    }
    assert!(homes.values().collect::<BTreeSet<_>>().len() >= 2, "{homes:?}");
    for (session, home) in &homes {
        assert_eq!(&in_session(&second, "x-user", &format!("user-{session}"), "x").await, home);
    }
    assert_eq!(first.metric(DECISIONS, &["reason=\"session\""]).await, 36.0);
}

#[tokio::test]
async fn session_hash_goes_by_the_prompt_where_no_session_is_named() {
    let engines = quick(3);
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), &policy("session_hash")).await;
    let mut homes = BTreeMap::new();
    for _ in 0..2 {
        for n in 0..8 {
            let here = endpoint(&client::chat(proxy.address, &chat(&prose(2000, n), 2, false)).await);
            let home = homes.entry(n).or_insert_with(|| here.clone());
            assert_eq!(*home, here, "prompt {n}");
        }
    }
    assert!(homes.values().collect::<BTreeSet<_>>().len() >= 2, "{homes:?}");
    assert_eq!(proxy.metric(DECISIONS, &["reason=\"prompt_hash\""]).await, 16.0);
}

#[tokio::test]
async fn larder_and_min_ttft_follow_the_prefix_until_its_engine_is_busy() {
    for name in ["larder", "min_ttft"] {
        // A token takes half a millisecond: the long prompt some 12 s, the short one half a second.
        let engines: Vec<Engine> = (0..2)
            .map(|_| Engine::start(&["--prefill-tokens-per-s=2000", "--decode-step-s=0.001"]))
            .collect();
        let proxy = Proxy::start(&[&engines[0], &engines[1]], &policy(name)).await;
        let short = prose(4000, 1);
        let home = endpoint(&client::chat(proxy.address, &chat(&short, 2, false)).await);
        for _ in 0..3 {
            assert_eq!(endpoint(&client::chat(proxy.address, &chat(&short, 2, false)).await), home, "{name}");
        }
        assert_eq!(proxy.metric(DECISIONS, &["reason=\"prefix_hit\""]).await, 3.0, "{name}");
        // The same beginning, so it goes there too, and keeps it busy.
        let (address, long) = (proxy.address, chat(&format!("{short}{}", prose(100_000, 2)), 2, false));
        let busy = tokio::spawn(async move { client::chat(address, &long).await });
        let label = format!("endpoint=\"{home}\"");
        proxy.metric_becomes("larder_in_flight_requests", &[&label], 1.0).await;
        let elsewhere = endpoint(&client::chat(proxy.address, &chat(&short, 2, false)).await);
        assert_ne!(elsewhere, home, "{name}: waiting costs more than computing it again");
        assert_eq!(proxy.metric(DECISIONS, &["reason=\"spill\""]).await, 1.0, "{name}");
        busy.abort();
        proxy.becomes_idle().await;
    }
}

#[tokio::test]
async fn one_seed_breaks_ties_alike() {
    let engines = quick(4);
    let all = engines.iter().collect::<Vec<_>>();
    let mut runs = Vec::new();
    for seed in [5, 5, 6] {
        let secret = larder_tests::world::config_file("a secret");
        let proxy = Proxy::start(&all, &format!("[routing]\nseed = {seed}\nsecret_file = {secret:?}")).await;
        let mut places = Vec::new();
        for n in 0..8 {
            // Nothing is learned from these, so only ties decide.
            places.push(
                client::post(proxy.address, "/unknown", &format!("{n}"))
                    .await
                    .header("x-larder-endpoint")
                    .to_owned(),
            );
        }
        std::fs::remove_file(secret).unwrap();
        runs.push(places);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2], "another seed, another order (1 in 65,536 would be alike)");
}
