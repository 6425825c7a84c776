mod client;
mod faults;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use xxhash_rust::xxh3::xxh3_64;

use self::client::{Mock, config};
use super::*;

/// A prompt of about this many tokens of 4 bytes, different for each `name`.
fn prompt(name: &str, tokens: usize) -> String {
    name.repeat(tokens * 4 / name.len())
}

#[tokio::test]
async fn answers_name_the_body_they_answer() {
    let mock = Mock::start(config()).await;
    let body = r#"{"messages": [{"role":"user", "content":"h\u00e9llo"}], "max_tokens": 40}"#;
    let answer = mock.call("POST", "/v1/chat/completions", "", body).await;
    let json = answer.json();
    let hash = format!("{:016x}", xxh3_64(body.as_bytes()));
    let content = json["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with(&format!("req-{hash} len-{} ", body.len())), "{content}");
    assert_eq!(content.len(), 160, "40 tokens of 4 bytes");
    assert_eq!(answer.header("x-mock-body-xxh3"), Some(&*hash));
    assert_eq!(answer.header("x-mock-body-bytes"), Some(&*body.len().to_string()));
    assert_eq!(
        (json["object"].as_str(), json["model"].as_str()),
        (Some("chat.completion"), Some("mock-model"))
    );
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    // <|user|>\n, 6 bytes, <|end|>\n and <|assistant|>\n: 37 bytes.
    assert_eq!(
        json["usage"],
        json!({
            "prompt_tokens": 10,
            "completion_tokens": 40,
            "total_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 0},
        })
    );
    let again = mock.call("POST", "/v1/chat/completions", "", body).await;
    assert_eq!(again.json()["choices"], json["choices"], "the same body gives the same text");
}

#[tokio::test]
async fn a_stream_is_a_chunk_per_token_then_usage_then_done() {
    let mock = Mock::start(config()).await;
    for (path, prompt) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hello"}]})),
        ("/v1/completions", json!({"prompt": "hello"})),
    ] {
        let mut body = prompt;
        body["max_tokens"] = json!(12);
        let whole = mock.post(path, &body).await.json();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let answer = mock.post(path, &body).await;
        assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let events = answer.events();
        assert_eq!(events.last(), Some(&"[DONE]"));
        let chunks: Vec<Value> =
            events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        let usage = &chunks.last().unwrap()["usage"];
        assert_eq!(
            (&usage["completion_tokens"], &usage["prompt_tokens"]),
            (&json!(12), &whole["usage"]["prompt_tokens"])
        );
        let chat = path.contains("chat");
        assert_eq!(chunks.len(), 12 + 1 + usize::from(chat), "{path}");
        let text = |chunk: &Value| {
            let choice = &chunk["choices"][0];
            let text = if chat { &choice["delta"]["content"] } else { &choice["text"] };
            text.as_str().unwrap_or("").to_owned()
        };
        let text: String = chunks.iter().map(text).collect();
        assert_eq!(text.len(), 48);
        assert!(text.starts_with("req-"), "{text}");
        let ends = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length").count();
        assert_eq!(ends, 1);
        body["stream_options"] = Value::Null;
        let without = mock.post(path, &body).await;
        assert!(!without.body.contains("usage"), "usage only where asked for");
    }
}

#[tokio::test]
async fn a_repeat_is_served_from_the_cache_and_reset_forgets() {
    let mock = Mock::start(config()).await;
    let text = prompt("repeat ", 1000);
    let first = mock.chat(&text, 2).await;
    let prompt_tokens = first.json()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(first.cached_tokens(), 0);
    assert_eq!(mock.chat(&text, 3).await.cached_tokens(), (prompt_tokens - 1) / 16 * 16);
    assert_eq!(mock.post("/reset_prefix_cache", &json!({})).await.json()["reset"], true);
    assert_eq!(mock.chat(&text, 2).await.cached_tokens(), 0);
}

#[tokio::test]
async fn cached_tokens_are_reported_as_the_flags_say() {
    let details = |answer: &client::Answer| answer.json()["usage"]["prompt_tokens_details"].clone();
    let text = prompt("flags ", 100);
    let off = Mock::start(Config { enable_prompt_tokens_details: false, ..config() }).await;
    let old = Mock::start(Config { null_when_uncached: true, ..config() }).await;
    for (mock, cached) in [(&off, Value::Null), (&old, json!({"cached_tokens": 96}))] {
        assert_eq!(details(&mock.chat(&text, 1).await), Value::Null);
        assert_eq!(details(&mock.chat(&text, 1).await), cached);
    }
    let none = Mock::start(Config { no_prefix_caching: true, ..config() }).await;
    none.chat(&text, 1).await;
    assert_eq!(none.chat(&text, 1).await.cached_tokens(), 0);
}

#[tokio::test]
async fn the_next_turn_finds_the_answer_in_the_cache() {
    let mock = Mock::start(config()).await;
    let first = mock.chat(&prompt("turn ", 200), 64).await.json();
    let answer = &first["choices"][0]["message"]["content"];
    let known = first["usage"]["total_tokens"].as_u64().unwrap();
    let messages = json!([
        {"role": "user", "content": prompt("turn ", 200)},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "and then?"},
    ]);
    let second = mock.post("/v1/chat/completions", &json!({"messages": messages, "max_tokens": 1})).await;
    // The last token's KV is never computed, and the cut into tokens differs by the last part of one.
    let cached = second.cached_tokens();
    assert!((known - 18..known).contains(&cached), "{cached} of {known} tokens");
}

#[tokio::test]
async fn conversations_larger_than_the_cache_evict_each_other() {
    for (kv_tokens, cached) in [(1600, false), (3200, true)] {
        let mock = Mock::start(Config { kv_tokens, ..config() }).await;
        for name in ["alpha ", "bravo "] {
            assert_eq!(mock.chat(&prompt(name, 1400), 1).await.cached_tokens(), 0);
        }
        let again = mock.chat(&prompt("alpha ", 1400), 1).await.cached_tokens();
        // The smaller cache keeps of the older what the younger leaves: at most 200 tokens of 1400.
        assert_eq!(again > 1300, cached, "{again} of 1400 tokens with {kv_tokens}");
        assert!(cached || again <= 200, "{again}");
    }
}

#[tokio::test]
async fn salts_and_adapters_share_nothing_aliases_share_all() {
    let mock = Mock::start(Config {
        models: vec!["base".into(), "alias".into()],
        loras: vec!["adapter".into()],
        ..config()
    })
    .await;
    let ask = async |model: &str, salt: Value| {
        let body =
            json!({"model": model, "prompt": prompt("salt ", 100), "cache_salt": salt, "max_tokens": 1});
        mock.post("/v1/completions", &body).await.cached_tokens()
    };
    assert_eq!(ask("base", Value::Null).await, 0);
    assert_eq!(ask("alias", Value::Null).await, 96);
    assert_eq!(ask("adapter", Value::Null).await, 0);
    assert_eq!(ask("base", json!("tenant")).await, 0);
    assert_eq!(ask("base", json!("tenant")).await, 96);
    let models = mock.get("/v1/models").await.json();
    let names: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "alias", "adapter"]);
    assert_eq!(models["data"][0]["max_model_len"], 131_072);
}

#[tokio::test]
async fn small_bodies_can_stand_for_long_prompts() {
    let mock = Mock::start(Config { bytes_per_token: 0.25, ..config() }).await;
    let usage = mock.chat("0123456789", 100).await.json()["usage"].clone();
    // 41 bytes of rendered prompt.
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(164), &json!(100)));
    assert_eq!(mock.chat("0123456789", 100).await.cached_tokens(), 160);
}

#[tokio::test]
async fn token_id_prompts_count_ids() {
    let mock = Mock::start(config()).await;
    let ids: Vec<u32> = (0..100).collect();
    let body = json!({"prompt": ids, "max_tokens": 3});
    assert_eq!(mock.post("/v1/completions", &body).await.json()["usage"]["prompt_tokens"], 100);
    assert_eq!(mock.post("/v1/completions", &body).await.cached_tokens(), 96);
}

#[tokio::test]
async fn tokenize_counts_what_the_engine_counts() {
    let mock = Mock::start(config()).await;
    let chat = json!({"messages": [{"role": "user", "content": prompt("count ", 50)}]});
    let counted = mock.post("/tokenize", &chat).await.json();
    let used = mock.post("/v1/chat/completions", &chat).await.json();
    assert_eq!(counted["count"], used["usage"]["prompt_tokens"]);
    assert_eq!(counted["tokens"].as_array().unwrap().len() as u64, counted["count"].as_u64().unwrap());
    assert_eq!(mock.post("/tokenize", &json!({"prompt": "12345"})).await.json()["count"], 2);
}

#[tokio::test]
async fn bad_requests_are_refused_in_openai_shape() {
    let mock = Mock::start(Config { kv_tokens: 1600, ..config() }).await;
    let user = json!([{"role": "user", "content": "a"}]);
    let long = json!([{"role": "user", "content": prompt("long ", 2000)}]);
    for (body, status) in [
        ("{".to_owned(), 400),
        ("\u{0}".to_owned(), 400),
        (json!({"messages": "no array"}).to_string(), 400),
        (json!({"messages": user, "model": "unknown"}).to_string(), 404),
        (json!({"messages": user, "max_tokens": 0}).to_string(), 400),
        (json!({"messages": user, "max_tokens": 100_000}).to_string(), 400),
        (json!({"messages": user, "cache_salt": ""}).to_string(), 400),
        (json!({"messages": user, "n": 2}).to_string(), 400),
        (json!({"messages": long}).to_string(), 400),
    ] {
        let answer = mock.call("POST", "/v1/chat/completions", "", &body).await;
        assert_eq!(answer.status, status, "{body}");
        let error = &answer.json()["error"];
        assert_eq!(error["code"], status, "{error}");
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
    }
    assert_eq!(mock.get("/v1/chat/completions").await.status, 405);
    assert_eq!(mock.get("/nowhere").await.status, 404);
    assert_eq!(mock.stat("running").await, 0);
    let claim = format!("content-length: {}\r\n", BODY_BYTES_MAX + 1);
    let mut stream = TcpStream::connect(mock.address).await.unwrap();
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\n{claim}\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test]
async fn the_api_key_guards_v1_only() {
    let mock = Mock::start(Config { api_key: Some("secret".into()), ..config() }).await;
    assert_eq!(mock.get("/v1/models").await.status, 401);
    assert_eq!(mock.call("GET", "/v1/models", "authorization: Bearer wrong\r\n", "").await.status, 401);
    assert_eq!(mock.call("GET", "/v1/models", "authorization: Bearer secret\r\n", "").await.status, 200);
    assert_eq!(mock.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    // At this speed the answers would take half an hour.
    let mock = Mock::start(Config { time_scale: 1.0, max_running: 1, kv_tokens: 200_000, ..config() }).await;
    let body = |stream: bool| json!({"prompt": "leave", "max_tokens": 100_000, "stream": stream}).to_string();
    let mut streaming = mock.send("POST", "/v1/completions", "", &body(true)).await;
    let mut first = [0; 16];
    streaming.read_exact(&mut first).await.unwrap();
    let unstreamed = mock.send("POST", "/v1/completions", "", &body(false)).await;
    mock.until("waiting", 1).await;
    assert_eq!(mock.stat("running").await, 1);
    drop(unstreamed);
    mock.until("aborted", 1).await;
    drop(streaming);
    mock.until("aborted", 2).await;
    assert_eq!(
        (mock.stat("running").await, mock.stat("waiting").await, mock.stat("kv_blocks_used").await),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn metrics_have_the_names_of_vllm() {
    let mock = Mock::start(Config { models: vec!["a\"b".into()], ..config() }).await;
    mock.chat(&prompt("metrics ", 100), 5).await;
    mock.chat(&prompt("metrics ", 100), 5).await;
    let page = mock.get("/metrics").await.body;
    let value = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("vllm:{name}{{")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {page}"));
        assert!(line.contains(r#"model_name="a\"b""#), "{line}");
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(
        value("num_requests_running") + value("num_requests_waiting") + value("kv_cache_usage_perc"),
        0.0
    );
    assert_eq!((value("generation_tokens_total"), value("prefix_cache_hits_total")), (10.0, 96.0));
    assert_eq!(value("prompt_tokens_total"), value("prefix_cache_queries_total"));
    assert_eq!((value("cache_config_info"), value("time_to_first_token_seconds_count")), (1.0, 2.0));
    assert!(page.contains(r#"block_size="16""#) && page.contains(r#"num_gpu_blocks="8192""#), "{page}");
    assert!(page.contains(r#"le="+Inf"} 2"#) && page.contains(r#"le="1.0"} "#), "{page}");
}

#[tokio::test]
async fn debug_shows_what_arrived() {
    let mock = Mock::start(Config { echo_unknown: true, ..config() }).await;
    let mut stream = TcpStream::connect(mock.address).await.unwrap();
    let request = "PUT /any/path?q=1 HTTP/1.1\r\nHost: h\r\nX-Two: 2\r\nTransfer-Encoding: chunked\r\nX-One: 1\r\n\
                   Trailer: x-after\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-after: yes\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let echoed = client::read(&mut stream).await.unwrap().json();
    let hash = format!("{:016x}", xxh3_64(b"abcde"));
    assert_eq!(echoed, json!({"method": "PUT", "path": "/any/path?q=1", "body_bytes": 5, "body_xxh3": hash}));
    let last = mock.get("/debug/last").await.json();
    assert_eq!((&last["framing"], &last["trailers"]), (&json!("chunked"), &json!([["x-after", "yes"]])));
    let names: Vec<_> =
        last["headers"].as_array().unwrap().iter().map(|pair| pair[0].as_str().unwrap()).collect();
    assert_eq!(names, ["host", "x-two", "transfer-encoding", "x-one", "trailer", "connection"]);
    mock.get("/health").await;
    mock.get("/debug/stats").await;
    assert_eq!(mock.get("/debug/last").await.json(), last, "probes are not recorded");
    mock.post("/other", &json!({})).await;
    let all = mock.get("/debug/requests").await.json();
    assert_eq!(all.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn interim_responses_and_trailers_on_demand() {
    let mock = Mock::start(config()).await;
    let headers = "x-mock-early-hints: 1\r\nx-mock-trailers: 1\r\nte: trailers\r\n";
    let answer = mock.call("GET", "/v1/models", headers, "").await;
    assert!(answer.head.starts_with("HTTP/1.1 103 Early Hints\r\nlink: "), "{answer:?}");
    assert!(answer.head.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert_eq!(answer.rest, "x-mock-trailer: sent\r\n\r\n");
    answer.json();
    assert_eq!(mock.get("/v1/models").await.rest, "");
}

#[tokio::test]
async fn many_requests_share_a_connection() {
    let mock = Mock::start(config()).await;
    let mut stream = TcpStream::connect(mock.address).await.unwrap();
    let head = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    let both = format!("{head}{}", head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"));
    tokio::io::AsyncWriteExt::write_all(&mut stream, both.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
}

#[tokio::test]
async fn impossible_settings_are_named() {
    for (config, named) in [
        (Config { kv_tokens: 10, ..config() }, "kv-tokens 10"),
        (Config { block_tokens: 0, ..config() }, "block-tokens"),
        (Config { block_tokens: 1 << 17, ..config() }, "block-tokens 131072"),
        (Config { media_tokens: u32::MAX, ..config() }, "media-tokens"),
        (Config { bytes_per_token: 0.3, ..config() }, "bytes-per-token"),
        (Config { time_scale: 0.0, ..config() }, "time-scale 0"),
        (Config { time_scale: f64::NAN, ..config() }, "time-scale NaN"),
        (Config { decode_step_s: -1.0, ..config() }, "decode-step-s -1"),
        (Config { max_model_len: Some(1 << 20), ..config() }, "max-model-len 1048576"),
    ] {
        let error = serve(config).await.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(named), "{named}: {error}");
    }
}
