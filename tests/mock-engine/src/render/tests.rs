use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn renderer() -> Renderer {
    Renderer { tokeniser: Tokeniser::new(16, 4.0).unwrap(), media_tokens: 16 }
}

fn chat(body: &str) -> String {
    let request: ChatRequest<'_> = serde_json::from_str(body).unwrap();
    String::from_utf8(renderer().chat(&request, body.len()).bytes).unwrap()
}

fn prompt(body: &str) -> Result<Rendered, String> {
    let request: CompletionRequest<'_> = serde_json::from_str(body).map_err(|error| error.to_string())?;
    Ok(renderer().prompt(request.prompt))
}

#[test]
fn tools_come_first_then_messages_in_order() {
    let body = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"U"}],
        "tools":[{"type":"function","function":{"name":"f"}}],"chat_template_kwargs":{"enable_thinking":false}}"#;
    assert_eq!(
        chat(body),
        "<|kwargs|>\n{\"enable_thinking\":false}<|end|>\n\
         <|tools|>\n{\"type\":\"function\",\"function\":{\"name\":\"f\"}}\n<|end|>\n\
         <|system|>\nS<|end|>\n<|user|>\nU<|end|>\n<|assistant|>\n"
    );
}

#[test]
fn spelling_of_the_json_does_not_matter() {
    let one = r#"{"messages":[{"role":"user","content":"a\nb\u00e9/"}],"tools":[{"k":1,"s":"x\/\u0041"}]}"#;
    let two = r#"{ "tools" : [ { "k" : 1 , "s" : "x/A" } ],
        "messages" : [ { "content" : "a\u000abé\/" , "role" : "us\u0065r" } ] , "temperature" : 0 }"#;
    assert_eq!(chat(one), chat(two));
    let other_order = r#"{"messages":[{"role":"user","content":"a\nbé/"}],"tools":[{"s":"x/A","k":1}]}"#;
    assert_ne!(chat(one), chat(other_order), "inside a tool the order of keys is part of the prompt");
}

#[test]
fn parts_join_and_media_take_their_tokens() {
    let text = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"ab\n"},"c"]}]}"#;
    assert_eq!(chat(text), chat(r#"{"messages":[{"role":"user","content":"ab\nc"}]}"#));
    let image = |url: &str| {
        let part = format!(r#"{{"type":"image_url","image_url":{{"url":"{url}"}}}}"#);
        chat(&format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#))
    };
    let (small, large) = (image("data:1"), image(&"data:2".repeat(10_000)));
    assert_eq!(small.len(), large.len(), "an image is as long as any other");
    assert_ne!(small, large);
    assert_eq!(small.len() - chat(r#"{"messages":[{"role":"user","content":null}]}"#).len(), 16 * 4);
}

#[test]
fn next_turn_extends_the_turn_before() {
    let first = r#"{"messages":[{"role":"user","content":"U"}]}"#;
    let second = r#"{"messages":[{"role":"user","content":"U"},{"role":"assistant","content":"ANSWER"},
        {"role":"user","content":"V"}]}"#;
    assert!(chat(second).starts_with(&(chat(first) + "ANSWER")));
}

#[test]
fn tool_calls_and_their_results_are_rendered() {
    let as_text = r#"{"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
        "function":{"name":"f","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"1","content":"R"}]}"#;
    let as_object = r#"{"messages":[{"role":"assistant","tool_calls":[{"id":"1","type":"function",
        "function":{"name":"f","arguments":{"a": 1}}}]},{"role":"tool","tool_call_id":"1","content":"R"}]}"#;
    assert_eq!(chat(as_text), chat(as_object));
    assert!(chat(as_text).contains("<call>f\n{\"a\":1}"), "{}", chat(as_text));
}

#[test]
fn generation_prompt_follows_the_request() {
    let with =
        |extra: &str| chat(&format!(r#"{{"messages":[{{"role":"assistant","content":"A"}}]{extra}}}"#));
    assert_eq!(with(r#","add_generation_prompt":false"#), "<|assistant|>\nA<|end|>\n");
    assert_eq!(with(r#","continue_final_message":true,"add_generation_prompt":false"#), "<|assistant|>\nA");
}

#[test]
fn prompts_of_all_forms() {
    assert_eq!(prompt(r#"{"prompt":"ab"}"#).unwrap().bytes, b"ab");
    assert_eq!(prompt(r#"{"prompt":["a","b"]}"#), prompt(r#"{"prompt":"ab"}"#));
    let ids = prompt(r#"{"prompt":[1,2,70000]}"#).unwrap();
    assert_eq!((ids.tokens(), ids.bytes.len()), (3, 12));
    assert_eq!(prompt(r#"{"prompt":[[1,2],[70000]]}"#).unwrap(), ids);
    for bad in
        [r#"{"prompt":[1,"a"]}"#, r#"{"prompt":[-1]}"#, r#"{"prompt":{}}"#, r#"{}"#, r#"{"prompt":null}"#]
    {
        assert!(prompt(bad).is_err(), "{bad}");
    }
}

#[test]
fn malformed_chats_are_errors() {
    for bad in [
        r#"{}"#,
        r#"{"messages":[{"content":"a"}]}"#,
        r#"{"messages":[{"role":"user","content":5}]}"#,
        r#"{"messages":[{"role":"user","content":[{"text":"no type"}]}]}"#,
        r#"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
        r#"{"messages":[],"max_tokens":-1}"#,
        r#"{"messages":[]} trailing"#,
    ] {
        assert!(serde_json::from_str::<ChatRequest<'_>>(bad).is_err(), "{bad}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// The same document with every string spelled in `\u` escapes, and with white space.
fn escaped(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text),
        Value::Array(items) => format!("[ {} ]", items.iter().map(escaped).collect::<Vec<_>>().join(" ,\n")),
        Value::Object(pairs) => {
            let pair = |(key, value): (&String, &Value)| format!("{}\t:{}", escape(key), escaped(value));
            format!("{{\r{} }}", pairs.iter().map(pair).collect::<Vec<_>>().join(" , "))
        }
        other => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    let units: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
    format!("\"{units}\"")
}

fn canonical(json: &str) -> String {
    let mut out = String::new();
    canonical_json(json, &mut out);
    out
}

proptest! {
    #[test]
    fn canonical_json_has_one_spelling(value in any_json()) {
        let plain = canonical(&value.to_string());
        prop_assert_eq!(&plain, &canonical(&escaped(&value)));
        prop_assert_eq!(&plain, &canonical(&serde_json::to_string_pretty(&value).unwrap()));
        prop_assert_eq!(serde_json::from_str::<Value>(&plain).unwrap(), value);
    }

    #[test]
    fn no_body_makes_the_parser_panic(body: String) {
        let _ = serde_json::from_str::<ChatRequest<'_>>(&body);
        let _ = serde_json::from_str::<CompletionRequest<'_>>(&body);
        // Not JSON at all: still no panic.
        canonical(&body);
    }
}
