use super::*;

fn request() -> StageRequest {
    StageRequest {
        tag: Some(Tag(0xab)),
        chain: vec![ChainPoint(u64::MAX), ChainPoint(1)],
        run_bytes: 512,
        prompt_bytes: 1100,
        engine: Some("http://10.0.0.11:8000".into()),
        deadline_ms: Some(50),
        max_bytes: None,
        tenant: None,
    }
}

#[test]
fn golden_request() {
    let text = r#"{"tag":"000000000000000000000000000000ab","chain":["ffffffffffffffff","0000000000000001"],"run_bytes":512,"prompt_bytes":1100,"engine":"http://10.0.0.11:8000","deadline_ms":50}"#;
    assert_eq!(serde_json::to_string(&request()).unwrap(), text);
    assert_eq!(serde_json::from_str::<StageRequest>(text).unwrap(), request());
}

#[test]
fn golden_answer() {
    let answer = StageAnswer {
        lease: None,
        tag: Some(Tag(1)),
        tokens_ready: 0,
        chunks: 0,
        bytes: 0,
        reason: StageReason::NoRecipe,
    };
    let text = r#"{"lease":null,"tag":"00000000000000000000000000000001","tokens_ready":0,"chunks":0,"bytes":0,"reason":"no_recipe"}"#;
    assert_eq!(serde_json::to_string(&answer).unwrap(), text);
    assert_eq!(serde_json::from_str::<StageAnswer>(text).unwrap(), answer);
    let newer = text.replace("no_recipe", "too_hot").replace("{\"lease\"", "{\"more\":1,\"lease\"");
    assert_eq!(serde_json::from_str::<StageAnswer>(&newer).unwrap().reason, StageReason::Unknown);
}

#[test]
fn wrong_ids_and_points_are_refused() {
    for (good, bad) in [
        ("ffffffffffffffff", "fffffffffffffff"),
        ("ffffffffffffffff", "+fffffffffffffff"),
        ("000000000000000000000000000000ab", "ab"),
        ("000000000000000000000000000000ab", "+00000000000000000000000000000ab"),
        ("\"run_bytes\"", "\"run_byte\""),
    ] {
        let text = serde_json::to_string(&request()).unwrap().replacen(good, bad, 1);
        assert!(serde_json::from_str::<StageRequest>(&text).is_err(), "{bad}");
    }
}

#[test]
fn a_release_names_a_lease_or_a_pin() {
    let json = r#"{"pin":"0000000000000000000000000000002a"}"#;
    let request: ReleaseRequest = serde_json::from_str(json).unwrap();
    assert_eq!(request, ReleaseRequest { lease: None, pin: Some(crate::PinId(42)) });
    assert_eq!(serde_json::to_string(&request).unwrap(), json);
    assert!(serde_json::from_str::<ReleaseRequest>(r#"{"pin":"2a"}"#).is_err());
}

#[test]
fn a_quota_answer_is_one_object() {
    let tenant = TenantQuota { tenant: "a".to_owned(), max_bytes: None, held_bytes: 3 };
    let json = serde_json::to_string(&QuotaAnswer { tenant, evicted_chunks: 1 }).unwrap();
    assert_eq!(json, r#"{"tenant":"a","max_bytes":null,"held_bytes":3,"evicted_chunks":1}"#);
}
