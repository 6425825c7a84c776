//! Does the configuration change under load without a lost request, and does a bad one change nothing?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::{Method, Request, StatusCode};
use larder_tests::client::{self, Framing, json_request};
use larder_tests::world::{Engine, MODEL, Proxy, chat, config, config_file, config_of_pools, prose};
use serde_json::{Value, json};

use crate::limits::assert_refusal;

const RELOADS: &str = "larder_config_reload_total";
const APPLIED: &[&str] = &["result=\"applied\""];
const REFUSED: &[&str] = &["result=\"refused\""];
const ELEMENTS: &str = "larder_index_elements";

fn engines(count: usize) -> Vec<Engine> {
    (0..count).map(|_| Engine::start(&["--time-scale=1000"])).collect()
}

fn config_for(engines: &[&Engine], extra: &str) -> String {
    config(&engines.iter().map(|engine| engine.address).collect::<Vec<_>>(), extra)
}

/// Puts `text` into force by signal, and waits for it.
async fn reload(proxy: &Proxy, text: &str) {
    let before = proxy.metric(RELOADS, APPLIED).await;
    proxy.configure(text);
    proxy.program.signal("HUP");
    proxy.metric_becomes(RELOADS, APPLIED, before + 1.0).await;
}

async fn names(proxy: &Proxy) -> Vec<String> {
    let listed = client::get_json(proxy.admin, "/v1/endpoints").await;
    let endpoints = listed["pools"][0]["endpoints"].as_array().unwrap();
    let mut names: Vec<String> = endpoints.iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn sorted(engines: &[&Engine]) -> Vec<String> {
    let mut names: Vec<String> = engines.iter().map(|engine| engine.name()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_endpoints_come_and_go_and_no_request_is_lost() {
    let engines = engines(4);
    let all: Vec<&Engine> = engines.iter().collect();
    // Of each two sets in a row one has an endpoint that the other lacks, up to all of them.
    let sets: [&[&Engine]; 4] = [&all[..2], &all[2..], &all[..1], &all];
    let proxy = Proxy::start_with(&config_for(sets[0], "")).await;
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (address, stop, answered) = (proxy.address, Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                for n in 0u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let body = chat(&prose(2_000, client * 1_000 + n % 3), 3, n % 2 == 0);
                    let framing = Framing::ALL[n as usize % 4];
                    let request = json_request("/v1/chat/completions", &body);
                    let answer = client::try_send(address, request, framing).await.unwrap();
                    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for n in 1..=20 {
        let before = answered.load(Ordering::Relaxed);
        let set = sets[n % sets.len()];
        reload(&proxy, &config_for(set, "")).await;
        assert_eq!(names(&proxy).await, sorted(set));
        while answered.load(Ordering::Relaxed) < before + 10 && clients.iter().all(|c| !c.is_finished()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) > 200);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn what_was_known_of_a_removed_endpoint_is_freed() {
    let engines = engines(2);
    let only = config_for(&[&engines[0]], "");
    let proxy = Proxy::start_with(&only).await;
    let fresh = proxy.metric("larder_index_bytes", &[]).await;
    reload(&proxy, &config_for(&[&engines[1]], "")).await;
    let ask = async |seed| {
        let answer = client::chat(proxy.address, &chat(&prose(100_000, seed), 2, false)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    for n in 0..20 {
        ask(n).await;
    }
    proxy.becomes_idle().await;
    assert!(proxy.metric("larder_index_bytes", &[]).await > fresh + 20_000.0);
    assert!(proxy.metric(ELEMENTS, &[&engines[1].name()]).await > 1_000.0);
    reload(&proxy, &only).await;
    assert_eq!(proxy.metric(ELEMENTS, &[]).await, 0.0);
    let text = client::get(proxy.admin, "/metrics").await.text();
    assert!(!text.contains(&engines[1].name()), "its series are gone");
    // Chains of requests that are over are kept as buffers; nothing of the content is.
    let left = proxy.metric("larder_index_bytes", &[]).await;
    assert!(left < fresh + 20_000.0, "{left} bytes, {fresh} at the start");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_every_fault_is_told() {
    let engines = engines(2);
    let good = config_for(&[&engines[0]], "access_log = false");
    let proxy = Proxy::start_with(&good).await;
    let bad = config_for(&[&engines[1]], "access_lg = true\n[limits]\nmax_body = 5\n");
    for (n, text) in
        [bad.as_str(), "", "not toml", &bad.replace("access_lg", "access_log")].into_iter().enumerate()
    {
        proxy.configure(text);
        proxy.program.signal("HUP");
        proxy.metric_becomes(RELOADS, REFUSED, n as f64 + 1.0).await;
        assert_eq!(names(&proxy).await, [engines[0].name()], "{text}");
        let answer = client::chat(proxy.address, &chat("x", 2, false)).await;
        assert_eq!(answer.header("x-larder-endpoint"), engines[0].name());
    }
    assert_eq!(proxy.metric(RELOADS, APPLIED).await, 0.0);
    let log = proxy.program.log();
    for said in ["line 3: access_lg: unknown key", "line 5: limits.max_body", "the old configuration stays"] {
        assert!(log.contains(said), "{said} is not in:\n{log}");
    }
    // A file that the configuration names counts as part of it.
    proxy.configure(&config_for(&[&engines[1]], "[warehouse]\ntoken_file = \"does/not/exist\""));
    proxy.program.signal("HUP");
    proxy.metric_becomes(RELOADS, REFUSED, 5.0).await;
    assert!(proxy.program.log().contains("warehouse.token_file"));
    // The negative control: what mends it is taken.
    reload(&proxy, &config_for(&[&engines[1]], "")).await;
    assert_eq!(names(&proxy).await, [engines[1].name()]);
}

#[tokio::test]
async fn limits_and_policy_change_and_what_cannot_is_named() {
    let engines = engines(2);
    let both = [&engines[0], &engines[1]];
    let proxy = Proxy::start_with(&config_for(&both, "")).await;
    let long = chat(&prose(20_000, 1), 2, false);
    assert_eq!(client::chat(proxy.address, &long).await.status, 200);
    let extra = "threads = 1\n[limits]\nmax_body = \"10KiB\"\n[response]\nheaders = false\n[routing]\npolicy = \"round_robin\"\n\
                 run_bytes = 256\n";
    reload(&proxy, &config_for(&both, extra)).await;
    assert_refusal(&client::chat(proxy.address, &long).await, 413, "body_too_large");
    let by_turn = "reason=\"round_robin\"";
    let answer = client::chat(proxy.address, &chat("x", 2, false)).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-larder-endpoint")), (200, ""));
    assert_eq!(proxy.metric("larder_decisions_total", &[by_turn]).await, 1.0);
    let log = proxy.program.log();
    assert!(log.contains("needs a restart") && log.contains("threads, routing.run_bytes"), "{log}");
    reload(&proxy, &config_for(&both, "")).await;
    assert_eq!(client::chat(proxy.address, &long).await.status, 200);
}

/// What a reload cannot change is named, each thing of it, by every reload until the restart; the rest goes into force.
#[tokio::test]
async fn pools_warehouse_and_snapshot_are_named_and_stay() {
    let engines = [
        Engine::start(&["--time-scale=1000"]),
        Engine::start_with("127.0.0.1:0", &["--model=gone", "--time-scale=1000"]),
    ];
    let address = |n: usize| [engines[n].address];
    let mock = format!("model = \"{MODEL}\"");
    let proxy =
        Proxy::start_with(&config_of_pools(&[(&mock, &address(0)), ("model = \"gone\"", &address(1))], ""))
            .await;
    let secret = config_file("a secret of some length, kept in a file of its own\n");
    let state = config_file("");
    std::fs::remove_file(&state).unwrap();
    let extra = format!(
        "[warehouse]\ndeadline = \"99ms\"\n[routing]\nsecret_file = {secret:?}\n[snapshot]\nfile = {state:?}\n\
         [response]\nheaders = false\n"
    );
    let renamed = format!("{mock}\naliases = [\"mocking\"]\ntools_order = \"first_user_turn\"");
    let new = config_of_pools(&[(&renamed, &address(0)), ("model = \"new\"", &address(1))], &extra);
    for n in 1..=2 {
        reload(&proxy, &new).await;
        let named = [
            "routing.secret_file",
            "snapshot",
            "warehouse",
            "pool `mock`: aliases",
            "pool `mock`: tools_order",
            "pool `gone`: is in the file no more",
            "pool `new`: is new",
        ];
        let told = format!("needs a restart keys=\"{}\"", named.join(", "));
        let log = proxy.program.log();
        assert_eq!(log.matches(&told).count(), n, "{told}\n{log}");
    }
    for (model, status) in [(MODEL, 200), ("gone", 200), ("new", 404), ("mocking", 404)] {
        let answer = client::chat(proxy.address, &chat("x", 2, false).replace(MODEL, model)).await;
        assert_eq!(answer.status, status, "{model}: {}", answer.text());
        assert_eq!(answer.header("x-larder-endpoint"), "", "the rest is in force");
    }
    assert!(!state.exists());
    // The negative control: the file of before has nothing to name.
    let before = proxy.program.log().matches("needs a restart").count();
    reload(&proxy, &config_of_pools(&[(&mock, &address(0)), ("model = \"gone\"", &address(1))], "")).await;
    assert_eq!(proxy.program.log().matches("needs a restart").count(), before);
    std::fs::remove_file(secret).unwrap();
}

#[tokio::test]
async fn a_changed_file_is_seen_without_a_signal_unless_it_is_not_to_be() {
    let engines = engines(2);
    let still = Proxy::start_with(&config_for(&[&engines[0]], "reload_on_change = false")).await;
    let proxy = Proxy::start_with(&config_for(&[&engines[0]], "")).await;
    still.configure(&config_for(&[&engines[1]], "reload_on_change = false"));
    proxy.configure(&config_for(&[&engines[1]], ""));
    proxy.metric_becomes(RELOADS, APPLIED, 1.0).await;
    assert_eq!(names(&proxy).await, [engines[1].name()]);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(proxy.metric(RELOADS, &[]).await, 1.0, "once for each change");
    assert_eq!(still.metric(RELOADS, &[]).await, 0.0);
    assert_eq!(names(&still).await, [engines[0].name()]);
}

async fn call(proxy: &Proxy, method: Method, path: &str, body: &Value) -> StatusCode {
    let request = Request::builder().method(method).uri(path).body(body.to_string().into()).unwrap();
    client::send(proxy.admin, request, Framing::Length).await.status
}

#[tokio::test]
async fn what_calls_have_changed_stays_unless_the_file_says_otherwise() {
    let engines = engines(3);
    let proxy = Proxy::start_with(&config_for(&[&engines[0], &engines[1]], "")).await;
    let added = json!({"url": format!("http://{}", engines[2].address), "name": "extra"});
    assert_eq!(call(&proxy, Method::POST, "/v1/endpoints", &added).await, 201);
    let path = format!("/v1/endpoints/{}", engines[1].name());
    assert_eq!(call(&proxy, Method::DELETE, &path, &Value::Null).await, 200);
    let mut now = vec![engines[0].name(), "extra".to_owned()];
    now.sort();
    reload(&proxy, &config_for(&[&engines[0], &engines[1]], "access_log = true")).await;
    assert_eq!(names(&proxy).await, now);
    // The file adds it under another name: that cannot be meant, and is refused as a whole.
    proxy.configure(&config_for(&[&engines[0], &engines[1], &engines[2]], ""));
    proxy.program.signal("HUP");
    proxy.metric_becomes(RELOADS, REFUSED, 1.0).await;
    assert_eq!(names(&proxy).await, now);
    assert!(proxy.program.log().contains("an endpoint `extra` at"), "{}", proxy.program.log());
}
