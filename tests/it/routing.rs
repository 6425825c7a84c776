//! Does a prompt go where its prefix is?

use larder_tests::client::{self, Answer, json_request};
use larder_tests::world::{Engine, MODEL, Proxy, chat_of, prose};
use serde_json::{Value, json};

use crate::streaming::without_time;

/// 4,000 tokens of 4 bytes take a fifth of a second where they are not cached.
const ENGINE: [&str; 2] = ["--prefill-tokens-per-s=20000", "--decode-step-s=0.001"];

fn cached(answer: &Answer) -> u64 {
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

fn matched(answer: &Answer) -> u64 {
    answer.header("x-larder-matched-tokens").parse().unwrap()
}

/// One user's conversation.
struct Conversation {
    seed: u64,
    messages: Vec<Value>,
    endpoint: String,
    cached: u64,
}

impl Conversation {
    fn new(seed: u64) -> Self {
        let system = json!({"role": "system", "content": prose(2000, 1000 + seed)});
        Self { seed, messages: vec![system], endpoint: String::new(), cached: 0 }
    }

    fn next_body(&mut self) -> String {
        let text = prose(6000, self.seed * 100 + self.messages.len() as u64);
        self.messages.push(json!({"role": "user", "content": text}));
        chat_of(&self.messages, 8, false)
    }

    fn take(&mut self, answer: &Answer) {
        assert_eq!(answer.status, 200, "{}", answer.text());
        self.messages.push(answer.json()["choices"][0]["message"].clone());
        let endpoint = answer.header("x-larder-endpoint").to_owned();
        if self.endpoint.is_empty() {
            assert_eq!((cached(answer), matched(answer)), (0, 0), "the first turn is cold");
        } else {
            assert_eq!(endpoint, self.endpoint, "the engine that holds it");
            let (cached, matched) = (cached(answer), matched(answer));
            assert!(cached > self.cached, "{cached} tokens cached after {}", self.cached);
            // The proxy knows prompts in runs of 512 bytes, and not yet the answer to the last one.
            let share = matched as f64 / cached as f64;
            assert!((0.75..1.1).contains(&share), "{matched} matched, {cached} cached");
            self.cached = cached;
        }
        self.endpoint = endpoint;
    }
}

#[tokio::test]
async fn conversations_return_to_the_engine_that_holds_them() {
    let engines: Vec<Engine> = (0..3).map(|_| Engine::start(&ENGINE)).collect();
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), "").await;
    let mut conversations: Vec<Conversation> = (0..6).map(Conversation::new).collect();
    // All begin at once, so that load spreads them.
    let mut first = tokio::task::JoinSet::new();
    for (n, conversation) in conversations.iter_mut().enumerate() {
        let (address, body) = (proxy.address, conversation.next_body());
        first.spawn(async move { (n, client::chat(address, &body).await) });
    }
    while let Some(done) = first.join_next().await {
        let (n, answer) = done.unwrap();
        conversations[n].take(&answer);
    }
    for engine in &engines {
        let here = conversations.iter().filter(|c| c.endpoint == engine.name()).count();
        assert!((1..=3).contains(&here), "{here} of 6 conversations at one of 3 engines");
    }
    for _ in 0..3 {
        for conversation in &mut conversations {
            let answer = client::chat(proxy.address, &conversation.next_body()).await;
            conversation.take(&answer);
        }
    }
    proxy.becomes_idle().await;
    let predicted = proxy.metric("larder_predicted_cached_tokens_total", &[]).await;
    let actual = proxy.metric("larder_actual_cached_tokens_total", &[]).await;
    assert!((0.75..1.1).contains(&(predicted / actual)), "{predicted} predicted, {actual} cached");
    assert_eq!(proxy.metric("larder_decisions_total", &["reason=\"prefix_hit\""]).await, 18.0);
}

#[tokio::test]
async fn other_spellings_of_a_prompt_are_the_same_prompt() {
    let engines: Vec<Engine> = (0..4).map(|_| Engine::start(&ENGINE)).collect();
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), "").await;
    let text = format!("Grüße / \"quoted\" \u{1F600}\n{}", prose(8000, 7));
    let plain = json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 2});
    let first = client::chat(proxy.address, &plain.to_string()).await;
    let endpoint = first.header("x-larder-endpoint").to_owned();
    let escaped: String = text
        .encode_utf16()
        .map(|unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii_alphanumeric() || byte == b' ' => char::from(byte).to_string(),
            _ => format!("\\u{unit:04X}"),
        })
        .collect();
    let spellings = [
        serde_json::to_string_pretty(&plain).unwrap(),
        format!(
            "{{ \"max_tokens\" :2 ,\"temperature\":0.5,\"messages\":[ {{\"role\":\"user\" , \"content\":\n{}}}],\t\"model\":\"{MODEL}\"}}\n",
            json!(text)
        ),
        format!(
            r#"{{"messages":[{{"content":"{escaped}","role":"\u0075ser"}}],"max_tokens":2,"model":"{MODEL}","seed":7,"user":"me"}}"#
        ),
        json!({"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]})
            .to_string(),
    ];
    for spelling in spellings {
        let answer = client::chat(proxy.address, &spelling).await;
        assert_eq!(answer.header("x-larder-endpoint"), endpoint, "{spelling:.100}");
        assert!(matched(&answer) > 1000, "{} matched of {spelling:.100}", matched(&answer));
        assert!(cached(&answer) > 1000, "{} cached of {spelling:.100}", cached(&answer));
    }
    // The negative control: another first word is another prompt.
    let other = json!({"model": MODEL, "messages": [{"role": "user", "content": format!("x{text}")}], "max_tokens": 2});
    assert_eq!(matched(&client::chat(proxy.address, &other.to_string()).await), 0);
}

#[tokio::test]
async fn completions_have_prefixes_too() {
    let engines: Vec<Engine> = (0..4).map(|_| Engine::start(&ENGINE)).collect();
    let proxy = Proxy::start(&engines.iter().collect::<Vec<_>>(), "").await;
    let text = prose(8000, 7);
    let ids: Vec<u64> = (0..4000).map(|n| n * 7 % 50_000).collect();
    let longer = format!("{text} and more {}", prose(2000, 8));
    let more_ids: Vec<u64> = ids.iter().copied().chain(0..500).collect();
    for (first, second) in [
        (json!(text), json!(longer)),
        (json!(ids), json!(more_ids)),
        (json!(["a ", text]), json!(["a ", longer])),
    ] {
        let mut answers = Vec::new();
        for prompt in [first, second] {
            let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 2}).to_string();
            answers.push(client::post(proxy.address, "/v1/completions", &body).await);
            assert_eq!(answers.last().unwrap().status, 200);
        }
        assert_eq!(answers[0].header("x-larder-endpoint"), answers[1].header("x-larder-endpoint"));
        assert!(matched(&answers[1]) > 1000 && cached(&answers[1]) > 1000);
    }
}

#[tokio::test]
async fn what_cannot_be_understood_is_sent_on_and_counted() {
    let (direct, engine) = (Engine::start(&ENGINE), Engine::start(&ENGINE));
    let proxy = Proxy::start(&[&engine], "").await;
    let deep = format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"a"}}],"tools":{}{}}}"#,
        "[".repeat(5000),
        "]".repeat(5000)
    );
    let bodies = [
        "not json",
        "",
        "[]",
        "{\"model\":\"mock\"",
        "{\"model\":\"mock\"}",
        "{\"model\":\"mock\",\"messages\":[]}",
        "{\"model\":\"mock\",\"messages\":[\"hello\"]}",
        "{\"model\":\"mock\",\"messages\":7}",
        "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":7}]}",
        "{\"model\":\"mock\",\"messages\":[{\"role\":\"user\",\"content\":\"\\ud800\"}]}",
        &deep,
    ];
    for body in bodies {
        let mut answers = Vec::new();
        for address in [direct.address, proxy.address] {
            let mut request = json_request("/v1/chat/completions", body);
            request.headers_mut().insert("x-request-id", "same".parse().unwrap());
            let answer = client::send(address, request, client::Framing::Length).await;
            answers.push((answer.status, without_time(&answer.text())));
        }
        assert_eq!(answers[0], answers[1], "{body:.80}");
    }
    for reason in ["not_json", "no_prompt", "unsupported", "too_deep"] {
        let label = format!("reason=\"{reason}\"");
        assert!(proxy.metric("larder_no_chain_total", &[&label]).await >= 1.0, "{reason}");
    }
    let broken = client::send(
        proxy.address,
        json_request("/v1/chat/completions", "")
            .map(|_| bytes::Bytes::from_static(b"{\"model\":\"mock\",\xff\xfe}")),
        client::Framing::Length,
    );
    assert_eq!(broken.await.status, 400);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn unknown_paths_go_where_there_is_room() {
    let engines: Vec<Engine> = (0..2).map(|_| Engine::start(&["--echo-unknown"])).collect();
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    // One engine has a long prompt to work on.
    let body = chat_of(&[json!({"role": "user", "content": prose(400_000, 1)})], 2, false);
    let address = proxy.address;
    let busy = tokio::spawn(async move { client::chat(address, &body).await });
    proxy.metric_becomes("larder_in_flight_requests", &[], 1.0).await;
    let mut names = std::collections::BTreeSet::new();
    for n in 0..10 {
        let answer = client::post(proxy.address, "/v1/embeddings", &format!("{n}")).await;
        assert_eq!(answer.status, 200);
        names.insert(answer.header("x-larder-endpoint").to_owned());
    }
    assert_eq!(names.len(), 1, "{names:?}");
    let free = names.pop_first().unwrap();
    let endpoint = format!("endpoint=\"{free}\"");
    assert_eq!(proxy.metric("larder_in_flight_requests", &[&endpoint]).await, 0.0);
    busy.abort();
    proxy.becomes_idle().await;
}
