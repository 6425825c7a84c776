//! Does a broken stream end with an error in the form of the API that was asked?

use larder_tests::client::{self, Framing, json_request};
use larder_tests::scripted::{Scripted, Then};
use larder_tests::world::{MODEL, Proxy, config};
use serde_json::{Value, json};

/// A stream that breaks off after these events, the last perhaps in its middle.
fn broken(events: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    format!("{head}{:x}\r\n{events}\r\n", events.len()).into_bytes()
}

/// Name and data of the event that the proxy put at the end.
async fn last_event(proxy: &Proxy, path: &str, events: &str, framing: Framing) -> (String, Value) {
    let body = json!({"model": MODEL, "stream": true, "input": "x", "prompt": "x",
                      "messages": [{"role": "user", "content": "x"}]});
    let mut stream = client::open(proxy.address, json_request(path, &body.to_string()), framing).await;
    let mut text = Vec::new();
    while let Some(Ok(piece)) = stream.piece().await {
        text.extend_from_slice(&piece);
    }
    let text = String::from_utf8(text).unwrap();
    let own = text.strip_prefix(events).unwrap_or_else(|| panic!("{text:?} does not begin with {events:?}"));
    let event = own.trim_start_matches('\n').strip_suffix("\n\n").unwrap();
    let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let name = event.lines().find_map(|line| line.strip_prefix("event: ")).unwrap_or_default();
    (name.to_owned(), serde_json::from_str(data).unwrap())
}

#[tokio::test]
async fn the_last_event_has_the_form_of_the_api() {
    let responses = "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0}\n\n\
                     event: response.output_text.delta\ndata: {\"sequence_number\":1,\"delta\":\"\\\"sequence_number\\\":99\"}\n\n";
    let messages = "event: message_start\ndata: {\"type\":\"message_start\"}\n\nevent: ping\ndata: {\"ty";
    let chat = "data: {\"choices\":[]}\n\n";
    let engine = Scripted::start(move |seen| {
        let path = seen.head.split(' ').nth(1).unwrap_or_default();
        let events = match path {
            "/v1/responses" => responses,
            "/v1/messages" => messages,
            _ => chat,
        };
        (broken(events), Then::Close)
    })
    .await;
    let proxy = Proxy::start_with(&config(&[engine.address], "[breaker]\nfailures = 0\n")).await;
    for framing in Framing::ALL {
        let (name, data) = last_event(&proxy, "/v1/responses", responses, framing).await;
        assert_eq!(name, "error");
        let expected = json!({"type": "error", "code": "engine_lost", "message": data["message"], "param": null,
                              "sequence_number": 2});
        assert_eq!(data, expected);
        assert!(data["message"].as_str().is_some_and(|text| !text.is_empty()));

        let (name, data) = last_event(&proxy, "/v1/messages", messages, framing).await;
        assert_eq!((name.as_str(), &data["type"]), ("error", &json!("error")));
        assert_eq!(
            (&data["error"]["type"], &data["error"]["code"]),
            (&json!("api_error"), &json!("engine_lost"))
        );
        assert!(data["error"]["message"].is_string());

        for path in ["/v1/chat/completions", "/v1/completions", "/v1/unknown"] {
            let (name, data) = last_event(&proxy, path, chat, framing).await;
            assert_eq!((name.as_str(), &data["error"]["code"]), ("", &json!("engine_lost")), "{path}");
        }
    }
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn refusals_have_the_form_of_the_api_too() {
    let proxy =
        Proxy::start_unready(&config(&["127.0.0.1:1".parse().unwrap()], "[limits]\nmax_body = \"1KiB\"\n"));
    for framing in Framing::ALL {
        let unknown = json!({"model": "other"}).to_string();
        for (body, status, kind, code) in [
            ("x".repeat(2_000), 413, "request_too_large", "body_too_large"),
            (unknown, 404, "not_found_error", "model_not_found"),
        ] {
            let answer = client::send(proxy.address, json_request("/v1/messages", &body), framing).await;
            assert_eq!(answer.status.as_u16(), status, "{framing:?}");
            let all = answer.json();
            let error = &all["error"];
            assert_eq!(
                (&all["type"], &error["type"], &error["code"]),
                (&json!("error"), &json!(kind), &json!(code))
            );
            assert!(error["message"].is_string(), "{error}");
        }
        // The negative control.
        let request = json_request("/v1/completions", &"x".repeat(2_000));
        let answer = client::send(proxy.address, request, framing).await;
        crate::limits::assert_refusal(&answer, 413, "body_too_large");
    }
}
