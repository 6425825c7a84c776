use super::*;
use crate::scale::Capacity;
use crate::trace::Format;

pub(crate) fn example() -> Results {
    let scale = Scale {
        trace: "t.jsonl".into(),
        format: Format::Agentic,
        time_unit: "trace seconds (wall seconds x time_scale)",
        time_scale: 100.0,
        duration_s: 60.0,
        sessions: 120,
        requests: 9395,
        live_sessions: 42,
        seed: 1,
        think_cap_s: 300.0,
        engines: 4,
        capacity: Capacity { unique_tokens: 1000, kv_tokens_per_engine: 25, share: 0.1, raised_from: None },
        block_tokens: 64,
        engine_block_tokens: 64,
        prefill_tokens_per_s: 6562.5,
        max_batched_tokens: 8192,
        decode_step_s: 0.0001,
        output_tokens: 2,
        bytes_per_token: 0.25,
        run_bytes: 64,
    };
    let run = Run {
        policy: "round_robin",
        trace: "t.jsonl".into(),
        engines: 4,
        capacity: 0.1,
        hit_rate: Some(0.34),
        imbalance: Some(1.25),
        ttft_mean_s: Some(105.0),
        ttft_p50_s: Some(60.5),
        ttft_p99_s: Some(586.0),
        requests_per_s: Some(0.25),
        errors: 0,
        requests: 9395,
        truncated: false,
        sessions: 42,
        seed: 1,
        time_scale: 100.0,
        wall_s: 60.0,
        bytes_per_token: 0.25,
        prefill_tokens_per_s: 6562.5,
        think_cap_s: 300.0,
        capacity_share: 0.1,
        input_tokens: 1_000_000,
        uncached_tokens: vec![1, 2, 3, 4],
        simulated_hit_rate: None,
        error_samples: Vec::new(),
    };
    let failed = Run {
        policy: "larder",
        hit_rate: None,
        ttft_mean_s: None,
        ttft_p50_s: None,
        ttft_p99_s: None,
        errors: 1,
        truncated: true,
        error_samples: vec!["status 502".into()],
        ..run.clone()
    };
    Results { scale, runs: vec![run, failed] }
}

/// Others read this file: a key may be added, never renamed or taken away.
#[test]
fn the_results_file_keeps_its_keys() {
    let value = serde_json::to_value(example()).unwrap();
    let run = &value["runs"][0];
    let expected = serde_json::json!({
        "policy": "round_robin", "trace": "t.jsonl", "engines": 4, "capacity": 0.1, "hit_rate": 0.34,
        "imbalance": 1.25, "ttft_mean_s": 105.0, "ttft_p50_s": 60.5, "ttft_p99_s": 586.0,
        "requests_per_s": 0.25, "errors": 0
    });
    for (key, expected) in expected.as_object().unwrap() {
        assert_eq!(&run[key], expected, "{key}");
    }
    assert_eq!(value["scale"]["time_unit"], "trace seconds (wall seconds x time_scale)");
    assert!(value["runs"][1]["hit_rate"].is_null());
}

#[test]
fn the_table_is_aligned_and_says_its_units_and_errors() {
    let text = table(&example().runs);
    assert!(text.contains("policy       hit rate"), "{text}");
    assert!(text.contains("round_robin    34.0 %       1.25   105.00 s"), "{text}");
    assert!(
        text.contains("9395 (cut)") && text.contains("trace seconds") && text.contains("status 502"),
        "{text}"
    );
}

#[test]
fn the_scale_is_printed_with_its_units() {
    let text = scale_lines(&example().scale);
    for part in
        ["42 of 120 sessions live", "25 KV tokens each (10.0 %", "1 wall second = 100.0 trace seconds"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn agreement_is_within_the_points_asked_for() {
    let mut runs = example().runs;
    runs[0].simulated_hit_rate = Some(0.36);
    let (text, agrees) = agreement(&runs[..1], 3.0);
    assert!(agrees && text.contains("34.0 % live, 36.0 % simulated, 2.0 points apart"), "{text}");
    assert!(!agreement(&runs[..1], 1.9).1);
    runs[0].truncated = true;
    assert!(!agreement(&runs[..1], 3.0).1);
    // A policy that is not simulated is named, and is no disagreement.
    let (text, agrees) = agreement(&example().runs[..1], 3.0);
    assert!(agrees && text.contains("not compared"), "{text}");
}
