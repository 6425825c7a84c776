//! Which models are shown, and which pool does a name lead to?

use larder_tests::client;
use larder_tests::world::{Engine, Proxy, config_of_pools};
use serde_json::{Value, json};

use crate::limits::assert_refusal;

const CHAT: &str = "/v1/chat/completions";

fn engine(args: &[&str]) -> Engine {
    let mut all = vec!["--enable-prompt-tokens-details", "--time-scale=1000", "--echo-unknown"];
    all.extend_from_slice(args);
    Engine::start_with("127.0.0.1:0", &all)
}

fn ask(model: Option<&str>) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2});
    if let Some(model) = model {
        body["model"] = json!(model);
    }
    body.to_string()
}

/// Two pools: `big` (alias `large`), whose second engine has an adapter `tuned`, and `small`.
async fn world() -> (Vec<Engine>, Proxy) {
    let engines = vec![
        engine(&["--model=big", "--model=large"]),
        engine(&["--model=big", "--model=large", "--lora=tuned"]),
        engine(&["--model=small"]),
    ];
    let addresses: Vec<_> = engines.iter().map(|engine| engine.address).collect();
    let pools = [
        ("model = \"big\"\naliases = [\"large\"]", &addresses[..2]),
        ("model = \"small\"\ntools_order = \"first_user_turn\"", &addresses[2..]),
    ];
    let proxy = Proxy::start_with(&config_of_pools(&pools, "")).await;
    (engines, proxy)
}

#[tokio::test]
async fn all_pools_and_adapters_are_in_one_list() {
    let (_engines, proxy) = world().await;
    let answer = client::get(proxy.address, "/v1/models").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
    let list = answer.json();
    assert_eq!(list["object"], "list");
    let cards = list["data"].as_array().unwrap();
    let ids: Vec<&str> = cards.iter().filter_map(|card| card["id"].as_str()).collect();
    assert_eq!(ids, ["big", "large", "small", "tuned"]);
    let tuned = cards.iter().find(|card| card["id"] == "tuned").unwrap();
    assert_eq!(
        (&tuned["parent"], &tuned["object"]),
        (&json!("big"), &json!("model")),
        "the engine's own card"
    );
    assert!(cards.iter().all(|card| card["max_model_len"].is_u64()), "{list}");
}

#[tokio::test]
async fn a_configured_name_is_listed_though_no_engine_shows_it() {
    let engine = engine(&["--model=inner"]);
    let proxy = Proxy::start_with(&config_of_pools(&[("model = \"outer\"", &[engine.address])], "")).await;
    let list = client::get_json(proxy.address, "/v1/models").await;
    let ids: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["inner", "outer"]);
}

#[tokio::test]
async fn names_lead_to_their_pools() {
    let (engines, proxy) = world().await;
    let names = |range: std::ops::Range<usize>| engines[range].iter().map(Engine::name).collect::<Vec<_>>();
    for (model, expected) in
        [("big", names(0..2)), ("large", names(0..2)), ("small", names(2..3)), ("tuned", names(1..2))]
    {
        for n in 0..6 {
            let answer = client::post(proxy.address, CHAT, &ask(Some(model))).await;
            assert_eq!(answer.status, 200, "{model}: {}", answer.text());
            assert_eq!(answer.json()["model"], model);
            let endpoint = answer.header("x-larder-endpoint").to_owned();
            assert!(expected.contains(&endpoint), "{model}, {n}: {endpoint} is none of {expected:?}");
        }
    }
    // Other paths are read for their model too.
    let answer = client::post(proxy.address, "/v1/embeddings", r#"{"input": ["a"], "model": "small"}"#).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-larder-endpoint")), (200, &*engines[2].name()));
}

#[tokio::test]
async fn an_unknown_model_is_not_found_and_the_known_are_listed() {
    let (engines, proxy) = world().await;
    for path in [CHAT, "/v1/completions", "/v1/embeddings"] {
        let answer = client::post(proxy.address, path, &ask(Some("huge"))).await;
        assert_refusal(&answer, 404, "model_not_found");
        let error = &answer.json()["error"];
        assert_eq!((&error["param"], &error["type"]), (&json!("model"), &json!("invalid_request_error")));
        let message = error["message"].as_str().unwrap();
        assert!(["huge", "big", "small"].iter().all(|name| message.contains(name)), "{message}");
    }
    for engine in &engines {
        assert!(engine.requests().await.is_empty());
    }
    assert_eq!(proxy.metric("larder_requests_total", &["code=\"404\"", "pool=\"\""]).await, 3.0);
}

#[tokio::test]
async fn with_several_pools_a_model_must_be_named() {
    let (engines, proxy) = world().await;
    for body in
        [ask(None), "not json".to_owned(), String::new(), r#"{"model": 7, "messages": []}"#.to_owned()]
    {
        let answer = client::post(proxy.address, CHAT, &body).await;
        assert_refusal(&answer, 400, "model_missing");
        assert!(answer.text().contains("big") && answer.text().contains("small"), "{}", answer.text());
    }
    assert_refusal(&client::get(proxy.address, "/version").await, 400, "model_missing");
    for engine in &engines {
        assert!(engine.requests().await.is_empty());
    }
}

#[tokio::test]
async fn with_one_pool_the_engine_says_what_it_thinks_of_a_body_without_model() {
    let engine = engine(&["--model=only"]);
    let proxy = Proxy::start_with(&config_of_pools(&[("model = \"only\"", &[engine.address])], "")).await;
    assert_eq!(client::post(proxy.address, CHAT, &ask(None)).await.status, 200);
    assert_eq!(client::get(proxy.address, "/version").await.status, 200);
    assert_refusal(&client::post(proxy.address, CHAT, &ask(Some("other"))).await, 404, "model_not_found");
}

#[tokio::test]
async fn adapters_do_not_share_their_bases_prefixes() {
    let engine = engine(&["--model=big", "--lora=tuned"]);
    let proxy = Proxy::start_with(&config_of_pools(&[("model = \"big\"", &[engine.address])], "")).await;
    let body = |model: &str, salt: Option<&str>| {
        let mut body = json!({"model": model, "max_tokens": 1,
            "messages": [{"role": "user", "content": larder_tests::world::prose(8000, 1)}]});
        if let Some(salt) = salt {
            body["cache_salt"] = json!(salt);
        }
        body.to_string()
    };
    let mut seen = Vec::new();
    for (model, salt) in [
        ("big", None),
        ("tuned", None),
        ("big", Some("a")),
        ("big", None),
        ("tuned", None),
        ("big", Some("a")),
    ] {
        let answer = client::post(proxy.address, CHAT, &body(model, salt)).await;
        let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        let matched: u64 = answer.header("x-larder-matched-tokens").parse().unwrap();
        seen.push((cached > 1000, matched > 1000));
    }
    assert_eq!(
        seen,
        [(false, false), (false, false), (false, false), (true, true), (true, true), (true, true)]
    );
}
