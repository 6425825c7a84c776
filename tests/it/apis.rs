//! Do the other APIs with prompts get the same affinity as chat, and is what their answers tell understood?

use larder_tests::client;
use larder_tests::scripted::{Scripted, Seen, Then, ok};
use larder_tests::world::{Proxy, config, prose};
use serde_json::{Value, json};

/// The turns of a conversation in each API, and how its engines spell the usage: path, body, usage.
fn call(path: &str, turns: &[String]) -> Value {
    let messages: Vec<Value> = turns.iter().map(|turn| json!({"role": "user", "content": turn})).collect();
    match path {
        "/v1/messages" => json!({"messages": messages, "model": "mock", "max_tokens": 1,
            "system": [{"type": "text", "text": prose(2_000, 1)}]}),
        "/v1/responses" => json!({"input": messages, "model": "mock", "instructions": prose(2_000, 1)}),
        "/v1/embeddings" => json!({"input": turns.concat(), "model": "mock"}),
        _ => json!({"messages": messages, "model": "mock"}),
    }
}

const USAGES: [(&str, &str); 3] = [
    ("/v1/messages", r#"{"usage":{"input_tokens":36,"cache_read_input_tokens":64,"output_tokens":1}}"#),
    ("/v1/responses", r#"{"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":64}}}"#),
    ("/v1/embeddings", r#"{"usage":{"prompt_tokens":100,"prompt_tokens_details":{"cached_tokens":64}}}"#),
];

fn answer(seen: &Seen) -> (Vec<u8>, Then) {
    let usage = USAGES.iter().find(|(path, _)| seen.head.contains(path));
    (ok(usage.map_or("{}", |(_, usage)| usage)), Then::Next)
}

#[tokio::test]
async fn a_conversation_returns_to_its_engine_whatever_the_api() {
    for (path, _) in USAGES {
        let engines = [Scripted::start(answer).await, Scripted::start(answer).await];
        let addresses = engines.each_ref().map(|engine| engine.address);
        let proxy = Proxy::start_with(&config(&addresses, "")).await;
        let mut turns = vec![prose(4_000, 2)];
        let mut first = String::new();
        for turn in 0..6 {
            let body = call(path, &turns).to_string();
            let answer = client::post(proxy.address, path, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let endpoint = answer.header("x-larder-endpoint").to_owned();
            let matched: u64 = answer.header("x-larder-matched-tokens").parse().unwrap();
            if turn == 0 {
                assert_eq!(matched, 0, "{path}");
                first = endpoint;
            } else {
                assert_eq!(endpoint, first, "{path} turn {turn}");
                assert!(matched > 0, "{path} turn {turn}");
            }
            turns.push(prose(1_500, 10 + turn));
        }
        proxy.becomes_idle().await;
        assert_eq!(proxy.metric("larder_no_chain_total", &[]).await, 0.0, "{path}");
        assert_eq!(proxy.metric("larder_prompt_tokens_total", &[]).await, 600.0, "{path}");
        assert_eq!(proxy.metric("larder_actual_cached_tokens_total", &[]).await, 384.0, "{path}");
        let sent = engines.iter().find_map(|engine| engine.seen().pop()).unwrap();
        let sent: Value = serde_json::from_slice(&sent.body).unwrap();
        assert!(sent.get("kv_transfer_params").is_none(), "bodies of these APIs are not changed");
    }
}

/// The negative control: another beginning is another prompt, also where it stands beside the messages.
#[tokio::test]
async fn another_system_prompt_shares_nothing() {
    let engine = Scripted::start(answer).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    let mut body = call("/v1/messages", &[prose(4_000, 2)]);
    for seed in 0..3 {
        body["system"] = prose(2_000, seed).into();
        let answer = client::post(proxy.address, "/v1/messages", &body.to_string()).await;
        assert_eq!(answer.header("x-larder-matched-tokens"), "0");
    }
    let again = client::post(proxy.address, "/v1/messages", &body.to_string()).await;
    assert_ne!(again.header("x-larder-matched-tokens"), "0");
}

#[tokio::test]
async fn what_else_lies_under_these_paths_passes_through() {
    let engine = Scripted::start(answer).await;
    let proxy = Proxy::start_with(&config(&[engine.address], "")).await;
    assert_eq!(client::get(proxy.address, "/v1/responses/resp_1").await.status, 200);
    assert_eq!(client::get(proxy.address, "/v1/responses").await.status, 200);
    assert_eq!(client::post(proxy.address, "/v1/messages/count_tokens", "{}").await.status, 200);
    assert_eq!(proxy.metric("larder_no_chain_total", &[]).await, 0.0);
    assert_eq!(engine.seen().len(), 3);
}
