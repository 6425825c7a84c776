//! Are keys asked for, told from wrong ones, kept from engines and logs, and changed under way?

use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use larder_tests::client::{self, Answer, Framing, json_request};
use larder_tests::program::run;
use larder_tests::scripted::{Scripted, Then, ok};
use larder_tests::world::{Engine, Proxy, chat, config, config_file, logged_values, prose};

use crate::limits::assert_refusal;
use crate::warehouse::beside_each;

const CHAT: &str = "/v1/chat/completions";
const ANN: &str = "sk-ann-0123456789abcdef";
const BOB: &str = "sk-bob-0123456789abcdef";

/// A file that goes with the test.
struct Keys(PathBuf);

impl Keys {
    fn new(text: &str) -> Self {
        Self(config_file(text))
    }

    fn toml(&self) -> String {
        format!("access_log = true\n[access]\nkeys_file = \"{}\"\n", self.0.display())
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn with(mut request: Request<Bytes>, name: &str, value: &str) -> Request<Bytes> {
    let name: header::HeaderName = name.parse().unwrap();
    request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    request
}

async fn ask(proxy: &Proxy, name: &str, value: &str, framing: Framing) -> Answer {
    let request = with(json_request(CHAT, &chat("hello", 2, false)), name, value);
    client::send(proxy.address, request, framing).await
}

#[tokio::test]
async fn only_who_shows_a_key_is_served() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let keys = Keys::new(&format!("# people\nann:{ANN}\n{BOB}\n"));
    let proxy = Proxy::start(&[&engine], &keys.toml()).await;
    for framing in Framing::ALL {
        for (name, value) in [
            ("x-else", ""),
            ("authorization", "Bearer sk-zed-0123456789abcdef"),
            ("authorization", ANN),
            ("x-api-key", ""),
        ] {
            let answer = ask(&proxy, name, value, framing).await;
            assert_refusal(&answer, 401, "invalid_api_key");
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"larder\"", "{framing:?}");
            assert!(!answer.text().contains("0123456789abcdef"), "{}", answer.text());
        }
        assert_eq!(ask(&proxy, "authorization", &format!("Bearer {ANN}"), framing).await.status, 200);
        assert_eq!(ask(&proxy, "x-api-key", BOB, framing).await.status, 200);
    }
    // Every path but the one that load balancers look at.
    assert_refusal(&client::get(proxy.address, "/v1/models").await, 401, "invalid_api_key");
    assert_refusal(&client::get(proxy.address, "/anything").await, 401, "invalid_api_key");
    assert_refusal(&client::post(proxy.address, "/health", "").await, 401, "invalid_api_key");
    assert_eq!(client::get(proxy.address, "/health").await.status, 200);

    for request in engine.requests().await {
        assert!(logged_values(&request, "authorization").is_empty(), "{request}");
        assert!(logged_values(&request, "x-api-key").is_empty(), "{request}");
    }
    proxy.becomes_idle().await;
    let log = proxy.program.log();
    assert!(log.contains("key=\"ann\"") && log.contains("key=\"line-3\""), "{log}");
    assert!(!log.contains("0123456789abcdef"), "no key is ever logged");
}

#[tokio::test]
async fn credentials_pass_where_no_keys_are_set_or_the_operator_wants_it() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let keys = Keys::new(&format!("ann:{ANN}\n"));
    let bearer = format!("Bearer {ANN}");
    for extra in [String::new(), format!("{}forward_keys = true\n", keys.toml())] {
        let proxy = Proxy::start(&[&engine], &extra).await;
        assert_eq!(ask(&proxy, "authorization", &bearer, Framing::Length).await.status, 200);
        assert_eq!(logged_values(&engine.last().await, "authorization"), [bearer.as_str()], "{extra}");
    }
}

#[tokio::test]
async fn keys_change_with_a_reload_and_a_bad_file_of_them_changes_nothing() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let keys = Keys::new(&format!("ann:{ANN}\n"));
    let proxy = Proxy::start(&[&engine], &keys.toml()).await;
    let status = async |key: &str| ask(&proxy, "x-api-key", key, Framing::Length).await.status.as_u16();
    assert_eq!((status(ANN).await, status(BOB).await), (200, 401));
    std::fs::write(&keys.0, format!("ann:{ANN}\nbob:short\nbob:{BOB}\nbob:{BOB}\n")).unwrap();
    proxy.program.signal("HUP");
    proxy.metric_becomes("larder_config_reload_total", &["result=\"refused\""], 1.0).await;
    let log = proxy.program.log();
    assert!(
        log.contains("access.keys_file") && log.contains("line 2: ") && log.contains("line 4: "),
        "{log}"
    );
    assert_eq!((status(ANN).await, status(BOB).await), (200, 401));
    // Without a signal: the file counts as part of the configuration.
    std::fs::write(&keys.0, format!("bob:{BOB}\n")).unwrap();
    proxy.metric_becomes("larder_config_reload_total", &["result=\"applied\""], 1.0).await;
    assert_eq!((status(ANN).await, status(BOB).await), (401, 200));
}

#[tokio::test]
async fn the_admin_listener_asks_for_its_token_and_leaves_loopback_only_with_one() {
    let engine = Engine::start(&[]);
    let token = Keys::new(&format!("{ANN}\n"));
    let extra = format!("[access]\nadmin_token_file = \"{}\"\n", token.0.display());
    let proxy = Proxy::start(&[&engine], &extra).await;
    for path in ["/metrics", "/v1/decisions", "/v1/endpoints", "/nothing"] {
        let answer = client::get(proxy.admin, path).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"larder\"");
        let request =
            with(Request::get(path).body(Bytes::new()).unwrap(), "authorization", &format!("Bearer {ANN}"));
        let status = client::send(proxy.admin, request, Framing::Length).await.status;
        assert_eq!(status, if path == "/nothing" { 404 } else { 200 }, "{path}");
    }
    for open in ["/healthz", "/readyz"] {
        assert_eq!(client::get(proxy.admin, open).await.status, 200, "{open}");
    }

    let check = |extra: &str| {
        let text =
            config(&[engine.address], extra).replace("admin = \"127.0.0.1:0\"", "admin = \"0.0.0.0:9090\"");
        let path = config_file(&text);
        let output = run("larder-proxy", &["--check", "--config", path.to_str().unwrap()]);
        std::fs::remove_file(path).unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = check("");
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("admin = \"0.0.0.0:9090\"") && said.contains("access.admin_token_file"), "{said}");
    assert_eq!(check(&extra).0, Some(0));
    // The files are checked as well.
    let (code, said) = check("[access]\nadmin_token_file = \"does/not/exist\"\nkeys_file = \"nor/this\"\n");
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("access.admin_token_file") && said.contains("access.keys_file"), "{said}");
}

/// What an engine stores in a cache node counts as the client's whose key asked for it, so that the node's quotas bind.
#[tokio::test]
async fn cache_nodes_are_told_whose_prompt_it_is() {
    const NOTHING: &str = r#"{"lease":null,"tokens_ready":0,"chunks":0,"bytes":0,"reason":"not_held"}"#;
    let engine = Engine::start(&["--time-scale=1000"]);
    let keys = Keys::new(&format!("ann:{ANN}\n{BOB}\n"));
    for (toml, tenants) in [(keys.toml(), [Some("ann"), Some("line-2")]), (String::new(), [None; 2])] {
        let node = Scripted::start(|_| (ok(NOTHING), Then::Next)).await;
        let text = config(&[engine.address], &toml);
        let proxy = Proxy::start_with(&beside_each(&text, node.address)).await;
        for (key, tenant) in [ANN, BOB].into_iter().zip(tenants) {
            // Long enough to be waited for.
            let prompt = chat(&prose(100_000, key.len() as u64 + u64::from(key == BOB)), 2, false);
            let request = with(json_request(CHAT, &prompt), "authorization", &format!("Bearer {key}"));
            let answer = client::send(proxy.address, request, Framing::Length).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let told: serde_json::Value = serde_json::from_slice(&node.last().body).unwrap();
            assert_eq!(told.get("tenant").and_then(serde_json::Value::as_str), tenant, "{told}");
        }
    }
}
