//! What routing reads from a body besides its prompt.

use larder_identity::{Api, ChainHasher, HasherSettings, NoChain, Secret, Walk};

fn walk(body: &str) -> Walk<'_> {
    walk_bytes(body.as_bytes())
}

fn walk_bytes(body: &[u8]) -> Walk<'_> {
    ChainHasher::new(HasherSettings::new(Secret::derive(b"envelope"))).walk(Api::Chat, b"", body)
}

#[test]
fn all_members_are_read_in_any_order_and_spelling() {
    let body = r#" { "kv_transfer_params" : { "larder" : 1 } , "u\u0073er": "u\n1", "messages":[{"content":"hi"}],
        "stream_options":{"x":[1],"include_usage":true}, "max_tokens": 77 , "stream":true,"m\u006fdel":"a\/b\u00e9"} "#;
    let Walk { envelope, prompt } = walk(body);
    assert!(prompt.is_ok() && envelope.complete && envelope.stream && envelope.include_usage);
    assert_eq!(envelope.model.as_deref(), Some("a/bé"));
    assert_eq!(envelope.session.as_deref(), Some("u\n1"));
    assert_eq!(envelope.max_tokens, Some(77));
    assert_eq!(&body[envelope.kv_transfer_params.unwrap()], r#"{ "larder" : 1 }"#);
    assert_eq!(envelope.body_object, Some(2));
    assert!(envelope.has_members);
}

#[test]
fn a_plain_model_is_borrowed() {
    let body = r#"{"model":"llama"}"#;
    assert!(matches!(walk(body).envelope.model, Some(std::borrow::Cow::Borrowed("llama"))));
}

#[test]
fn what_is_preferred_when_two_members_mean_the_same() {
    let session = |body| walk(body).envelope.session.map(std::borrow::Cow::into_owned);
    assert_eq!(session(r#"{"user":"u","prompt_cache_key":"k"}"#).as_deref(), Some("k"));
    assert_eq!(session(r#"{"prompt_cache_key":"","user":"u"}"#).as_deref(), Some("u"));
    assert_eq!(session(r#"{"prompt_cache_key":7,"user":null}"#), None);
    let tokens = |body| walk(body).envelope.max_tokens;
    assert_eq!(tokens(r#"{"max_completion_tokens":5,"max_tokens":9}"#), Some(5));
    assert_eq!(tokens(r#"{"max_completion_tokens":null,"max_tokens":9}"#), Some(9));
    assert_eq!(tokens(r#"{"max_tokens":-1}"#), None);
    assert_eq!(tokens(r#"{"max_tokens":1.5}"#), None);
    assert_eq!(tokens(r#"{"max_tokens":18446744073709551616}"#), None);
}

#[test]
fn the_last_of_two_equal_members_counts() {
    let body = r#"{"model":"a","stream":true,"kv_transfer_params":1,"stream_options":{"include_usage":true},
        "model":"b","stream":false,"kv_transfer_params":null,"stream_options":null}"#;
    let envelope = walk(body).envelope;
    assert_eq!(envelope.model.as_deref(), Some("b"));
    assert!(!envelope.stream && !envelope.include_usage);
    assert_eq!(&body[envelope.kv_transfer_params.unwrap()], "null");
}

#[test]
fn the_envelope_is_read_past_a_prompt_without_a_chain() {
    for (prompt, reason) in [
        ("5", "`messages` at byte 12 has a type without canonical form"),
        ("null", "body has no `messages`"),
        ("[]", "body has no `messages`"),
        ("[1]", "`message` at byte 13 has a type without canonical form"),
        (r#"[{"role":}]"#, "body is not valid JSON at byte 21"),
        ("[{\"role\":\"a\u{1}b\"}]", "body is not valid JSON at byte 22"),
        (r#"[{"role":"\ud8"}]"#, "body is not valid JSON at byte 22"),
    ] {
        let body = format!(r#"{{"messages":{prompt},"model":"m","stream":true}}"#);
        let Walk { envelope, prompt } = walk(&body);
        assert_eq!(envelope.model.as_deref(), Some("m"), "{body}");
        assert!(envelope.stream && envelope.complete);
        assert_eq!(prompt.unwrap_err().to_string(), reason, "{body}");
    }
}

#[test]
fn a_broken_body_keeps_what_came_before() {
    let envelope = walk(r#"{"model":"m","stream":tru"#).envelope;
    assert_eq!(envelope.model.as_deref(), Some("m"));
    assert!(!envelope.stream && !envelope.complete);
    for (body, at) in [("", 0), ("[]", 0), ("null", 0), ("{", 1), ("{}x", 2), ("\u{feff}{}", 0), ("{,}", 1)] {
        let walk = walk(body);
        assert_eq!(walk.prompt, Err(NoChain::NotJson { at }), "{body}");
        assert!(!walk.envelope.complete);
    }
}

#[test]
fn an_empty_object_says_so() {
    let Walk { envelope, prompt } = walk(" {} ");
    assert_eq!((envelope.body_object, envelope.has_members, envelope.complete), (Some(2), false, true));
    assert_eq!(prompt, Err(NoChain::NoPrompt { key: "messages" }));
}

#[test]
fn a_model_that_is_not_utf8_is_none() {
    let envelope = walk_bytes(b"{\"model\":\"\x80\",\"user\":\"\xc3\xa9\"}").envelope;
    assert_eq!(envelope.model, None);
    assert_eq!(envelope.session.as_deref(), Some("é"));
}
