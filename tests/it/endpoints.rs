//! Do endpoints come, drain and go while requests run, without losing any, and without leaving anything behind?

use http::{Method, Request, StatusCode};
use larder_tests::client::{self, Answer, Framing};
use larder_tests::world::{Engine, Proxy, chat, config_of_pools, prose};
use serde_json::{Value, json};

const CALLS: &str = "/v1/endpoints";

async fn call(proxy: &Proxy, method: Method, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
    client::send(proxy.admin, request, Framing::Length).await
}

async fn drain(proxy: &Proxy, engine: &Engine, on: bool) -> Answer {
    call(proxy, Method::POST, "/v1/endpoints/drain", &json!({"name": engine.name(), "drain": on})).await
}

async fn remove(proxy: &Proxy, engine: &Engine) -> Answer {
    call(proxy, Method::DELETE, &format!("{CALLS}/{}", engine.name()), &Value::Null).await
}

async fn add(proxy: &Proxy, engine: &Engine) -> Answer {
    call(proxy, Method::POST, CALLS, &json!({"url": format!("http://{}", engine.address)})).await
}

/// Who answered each of `count` short requests.
async fn served_by(proxy: &Proxy, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        let answer = client::chat(proxy.address, &chat("hello", 2, false)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        names.push(answer.header("x-larder-endpoint").to_owned());
    }
    names
}

const ROUND_ROBIN: &str = "[routing]\npolicy = \"round_robin\"";

#[tokio::test]
async fn a_draining_endpoint_finishes_what_it_has_and_gets_no_more() {
    let engines = [Engine::start(&[]), Engine::start(&["--time-scale=100"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], ROUND_ROBIN).await;
    let (first, second) = (engines[0].name(), engines[1].name());
    let request = client::json_request("/v1/chat/completions", &chat("hello", 40, true));
    let mut stream = loop {
        let opened = client::open(proxy.address, request.clone(), Framing::Length).await;
        if opened.headers.get("x-larder-endpoint").is_some_and(|name| name == first.as_str()) {
            break opened;
        }
    };
    stream.piece().await.unwrap().unwrap();
    let answer = drain(&proxy, &engines[0], true).await;
    assert_eq!((answer.status, &answer.json()["draining"]), (StatusCode::OK, &json!(true)));
    assert_eq!(answer.json()["in_flight"], 1);
    assert_eq!(proxy.metric("larder_endpoint_draining", &[&first]).await, 1.0);
    // Health checks come by meanwhile, and find it well: it stays out all the same.
    tokio::time::sleep(std::time::Duration::from_millis(250)).await;
    assert_eq!(served_by(&proxy, 6).await, vec![second.clone(); 6]);
    let whole = stream.rest().await.expect("what runs is not cut");
    assert!(whole.text().contains("[DONE]"), "{}", whole.text());

    assert_eq!(drain(&proxy, &engines[0], false).await.status, StatusCode::OK);
    let served = served_by(&proxy, 4).await;
    assert!(served.contains(&first) && served.contains(&second), "{served:?}");
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn endpoints_come_and_go_under_load_without_a_lost_request() {
    let engines: Vec<Engine> = (0..3).map(|_| Engine::start(&["--time-scale=100"])).collect();
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    let (address, stop) = (proxy.address, std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|client_number| {
            let stop = std::sync::Arc::clone(&stop);
            tokio::spawn(async move {
                let mut sent = 0u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let body = chat(&prose(5_000, client_number * 1_000 + sent), 4, sent.is_multiple_of(2));
                    let answer = client::chat(address, &body).await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    for _ in 0..5 {
        assert_eq!(add(&proxy, &engines[2]).await.status, StatusCode::CREATED);
        let before = engines[2].stat("requests").await;
        engines[2].stat_reaches("requests", before + 5).await;
        assert_eq!(remove(&proxy, &engines[2]).await.status, StatusCode::OK);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn a_removed_endpoint_leaves_nothing_behind() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0]], "").await;
    let bytes = || proxy.metric("larder_index_bytes", &[]);
    let mut after = Vec::new();
    for round in 0..4 {
        assert_eq!(add(&proxy, &engines[1]).await.status, StatusCode::CREATED);
        assert_eq!(drain(&proxy, &engines[0], true).await.status, StatusCode::OK);
        // Fewer tokens than its KV cache has: what it had to evict, the pool still remembers having seen.
        for n in 0..8 {
            let answer = client::chat(proxy.address, &chat(&prose(50_000, round * 100 + n), 2, false)).await;
            assert_eq!(answer.header("x-larder-endpoint"), engines[1].name());
        }
        proxy.becomes_idle().await;
        assert!(proxy.metric("larder_index_elements", &[&engines[1].name()]).await > 500.0);
        assert_eq!(drain(&proxy, &engines[0], false).await.status, StatusCode::OK);
        assert_eq!(remove(&proxy, &engines[1]).await.status, StatusCode::OK);
        let metrics = client::get(proxy.admin, "/metrics").await.text();
        assert!(!metrics.contains(&engines[1].name()), "its series are gone: {metrics}");
        after.push(bytes().await);
    }
    // What one round held is used again by the next.
    assert!(after[3] <= after[0] * 1.01, "{after:?}");
}

#[tokio::test]
async fn a_pool_without_endpoints_refuses_until_one_comes() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let proxy = Proxy::start(&[&engine], "").await;
    assert_eq!(remove(&proxy, &engine).await.status, StatusCode::OK);
    let answer = client::chat(proxy.address, &chat("hello", 2, false)).await;
    crate::limits::assert_refusal(&answer, 503, "no_endpoint");
    assert_eq!(client::get(proxy.admin, "/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(add(&proxy, &engine).await.status, StatusCode::CREATED);
    client::wait_for(proxy.admin, "/readyz", StatusCode::OK).await;
    assert_eq!(served_by(&proxy, 1).await, [engine.name()]);
}

#[tokio::test]
async fn an_added_endpoint_is_checked_too() {
    let engines = [Engine::start(&[]), Engine::start(&[])];
    let proxy = Proxy::start(&[&engines[0]], "[health]\ninterval = \"20ms\"").await;
    assert_eq!(add(&proxy, &engines[1]).await.status, StatusCode::CREATED);
    let name = engines[1].name();
    proxy.metric_becomes("larder_endpoint_up", &[&name], 1.0).await;
    engines[1].kill().await;
    proxy.metric_becomes("larder_endpoint_up", &[&name], 0.0).await;
}

#[tokio::test]
async fn a_wrong_call_is_told_what_is_wrong() {
    let engine = Engine::start(&[]);
    let proxy = Proxy::start(&[&engine], "").await;
    let url = format!("http://{}", engine.address);
    let post = |path: &'static str, body: Value| (Method::POST, path.to_owned(), body);
    for ((method, path, body), status, code) in [
        (post(CALLS, json!({"url": "ftp://x"})), 400, "bad_call"),
        (post(CALLS, json!({"url": "http://x", "name": "with blank"})), 400, "bad_call"),
        (post(CALLS, json!({"url": "http://x", "kv_tokens": 0})), 400, "bad_call"),
        (post(CALLS, json!({"url": "http://x", "cache_node": "ftp://x"})), 400, "bad_call"),
        (post(CALLS, json!({"url": "http://x", "nam": "typo"})), 400, "bad_call"),
        (post(CALLS, json!([])), 400, "bad_call"),
        (post(CALLS, json!({"url": "http://x", "name": "n".repeat(100_000)})), 400, "bad_call"),
        (post(CALLS, json!({"url": url})), 409, "endpoint_conflict"),
        (post(CALLS, json!({"url": "http://x", "pool": "other"})), 404, "pool_not_found"),
        (post("/v1/endpoints/drain", json!({"name": "nobody"})), 404, "endpoint_not_found"),
        ((Method::DELETE, format!("{CALLS}/nobody"), Value::Null), 404, "endpoint_not_found"),
        ((Method::DELETE, format!("{CALLS}/%zz"), Value::Null), 400, "bad_call"),
        ((Method::DELETE, CALLS.to_owned(), Value::Null), 405, "method_not_allowed"),
        ((Method::PUT, CALLS.to_owned(), json!({})), 405, "method_not_allowed"),
    ] {
        let answer = call(&proxy, method.clone(), &path, &body).await;
        let text = answer.text();
        let text: String = text.chars().take(300).collect();
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {text}");
        assert_eq!(answer.json()["error"]["code"], code, "{method} {path}: {text}");
    }
    // Nothing has changed, and none of it is on the clients' side.
    let listed = client::get_json(proxy.admin, CALLS).await;
    assert_eq!(listed["pools"][0]["endpoints"].as_array().map(Vec::len), Some(1), "{listed}");
    let answer = client::get(proxy.address, CALLS).await;
    assert_eq!(answer.header("x-larder-endpoint"), engine.name());
}

#[tokio::test]
async fn with_several_pools_the_pool_must_be_named() {
    let engines = [Engine::start(&[]), Engine::start(&[]), Engine::start(&[])];
    let addresses = [[engines[0].address], [engines[1].address]];
    let text = config_of_pools(&[("model = \"a\"", &addresses[0]), ("model = \"b\"", &addresses[1])], "");
    let proxy = Proxy::start_with(&text).await;
    let url = format!("http://{}", engines[2].address);
    let answer = call(&proxy, Method::POST, CALLS, &json!({"url": url})).await;
    assert_eq!(answer.json()["error"]["code"], "pool_missing");
    let named = json!({"url": url, "pool": "b", "name": "third one".replace(' ', "/")});
    assert_eq!(call(&proxy, Method::POST, CALLS, &named).await.status, StatusCode::CREATED);
    let listed = client::get_json(proxy.admin, CALLS).await;
    assert_eq!(listed["pools"][1]["endpoints"][1]["name"], "third/one", "{listed}");
    let path = format!("{CALLS}/third%2Fone?pool=b");
    assert_eq!(call(&proxy, Method::DELETE, &path, &Value::Null).await.status, StatusCode::OK);
}
