use std::path::Path;

/// Every input that is checked in, those that once failed among them.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let mut replayed = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&std::fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 3, "{replayed} inputs for {target}");
}

#[test]
fn the_corpus_of_prompts_passes() {
    replay("prompt", super::prompt);
}

#[test]
fn the_corpus_of_configs_passes() {
    replay("config", super::config);
}

#[test]
#[should_panic(expected = "found")]
fn negative_control_a_planted_fault_panics() {
    super::planted(b"larder and more");
}

#[test]
#[should_panic(expected = "assertion")]
fn negative_control_a_lost_member_is_noticed() {
    let strict = serde_json::json!({"model": "m", "n": 1});
    let spliced = br#"{"kv_transfer_params":{"larder":7},"model":"m"}"#;
    super::only_the_lease_is_new(strict.as_object().unwrap().clone(), spliced, 7.into());
}
