use larder_identity::{Api, ChainHasher, HasherSettings, Secret};
use serde_json::json;

use super::*;

fn places(body: &[u8]) -> Places {
    let hasher = ChainHasher::new(HasherSettings::new(Secret::derive(b"test")));
    let envelope = hasher.walk(Api::Chat, b"", body).envelope;
    Places {
        kv_transfer_params: envelope.kv_transfer_params,
        object: envelope.body_object,
        has_members: envelope.has_members,
        complete: envelope.complete,
    }
}

fn spliced(body: &str, own: Option<Value>) -> String {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    let out = splice(&bytes, &places(&bytes), own);
    let text = out.pieces.iter().flat_map(|p| p.iter().copied()).collect::<Vec<u8>>();
    assert_eq!(out.left, text.len() as u64);
    String::from_utf8(text).unwrap()
}

fn parsed(body: &str, own: Option<Value>) -> Value {
    serde_json::from_str(&spliced(body, own)).unwrap()
}

#[test]
fn ours_is_put_first_and_all_else_stays() {
    let body = r#" {"model":"m" , "messages":[{"role":"user","content":"hi"}] } "#;
    let out = spliced(body, Some(json!({"tag": "1"})));
    assert!(out.ends_with(&body[2..]), "{out}");
    assert_eq!(
        parsed(body, Some(json!({"tag": "1"})))["kv_transfer_params"],
        json!({"larder": {"tag": "1"}})
    );
    assert_eq!(parsed("{}", Some(json!(1))), json!({"kv_transfer_params": {"larder": 1}}));
}

#[test]
fn a_clients_other_parameters_stay() {
    let body = r#"{"kv_transfer_params":{"max_load_tokens":5,"larder":{"lease":"forged"}},"messages":[]}"#;
    assert_eq!(
        parsed(body, Some(json!(7)))["kv_transfer_params"],
        json!({"max_load_tokens": 5, "larder": 7})
    );
    assert_eq!(parsed(body, None)["kv_transfer_params"], json!({"max_load_tokens": 5}));
}

#[test]
fn a_forged_key_goes_however_it_is_spelled() {
    for key in ["larder", r"l\u0061rder", r"\u006Carder"] {
        let body = format!(r#"{{"messages":[],"kv_transfer_params":{{"{key}":{{"lease":"x"}}}}}}"#);
        assert_eq!(parsed(&body, None)["kv_transfer_params"], json!({}), "{key}");
    }
    // Negative control: a key that only looks alike stays.
    let body = r#"{"messages":[],"kv_transfer_params":{"larders":1}}"#;
    assert_eq!(spliced(body, None), body);
}

#[test]
fn nothing_to_do_changes_no_byte() {
    for body in
        ["", "no json", "[]", r#"{"kv_transfer_params":null,"a":1}"#, r#"{"kv_transfer_params":{"x":1.50}}"#]
    {
        assert_eq!(spliced(body, None), body);
    }
    for body in ["", "no json", "[1]", r#"{"kv_transfer_params":[],"a":1}"#, r#"{"a":1"#] {
        assert_eq!(spliced(body, Some(json!(1))), body, "cannot carry it");
    }
    assert_eq!(
        parsed(r#"{"kv_transfer_params":null}"#, Some(json!(1)))["kv_transfer_params"],
        json!({"larder": 1})
    );
}
