use super::*;
use crate::cli::{Command, parse};

fn plan(options: &str) -> Result<Plan, Error> {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/traces/agentic_sample.jsonl.xz");
    // Any file will do as a program: a plan starts nothing.
    let line = format!(
        "larder-bench replay --trace {sample} --format agentic --proxy-bin {sample} --mock-bin {sample} {options}"
    );
    let cli = parse(line.split_whitespace().map(Into::into))?.expect("no help was asked for");
    let Command::Replay(args) = cli.command else { panic!("not a replay") };
    Plan::new(&args)
}

#[test]
fn the_default_plan_is_the_public_point_scaled_to_the_sample() {
    let plan = plan("--duration-s 70").unwrap();
    let scale = &plan.scale;
    assert_eq!((scale.sessions, scale.live_sessions, scale.requests), (120, 42, 9395));
    assert_eq!(scale.prefill_tokens_per_s, 625.0 * 42.0 / 4.0);
    assert_eq!(scale.capacity.kv_tokens_per_engine, 965_312);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn the_order_depends_on_the_seed_alone() {
    let order = |options: &str| -> Vec<String> {
        plan(options).unwrap().trace.sessions.into_iter().map(|session| session.id).collect()
    };
    let first = order("--limit 20");
    assert_eq!(first, order("--limit 20 --policy larder --engines 8"));
    assert_eq!(first[..], order("--limit 40")[..20]);
    assert_ne!(first, order("--limit 20 --seed 2"));
}

#[test]
fn arguments_that_cannot_work_are_refused_with_the_reason() {
    for (options, expected) in [
        ("--plot plot.gif", "must end in .svg or .png"),
        ("--bytes-per-token 0.01", "at least 4 are needed"),
        ("--bytes-per-token 100", "use a smaller value"),
        ("--routing policy", "not one KEY=VALUE"),
    ] {
        let error = plan(options).unwrap_err();
        assert!(error.exit_code() == 64 && error.to_string().contains(expected), "{options}: {error}");
    }
}

#[test]
fn what_had_to_be_changed_is_said() {
    let plan = plan("--limit 3 --sessions 9 --capacity 0.01").unwrap();
    assert_eq!(plan.scale.live_sessions, 3);
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
    assert!(
        plan.warnings[0].contains("only 3 sessions") && plan.warnings[1].contains("cannot hold the largest")
    );
}

#[test]
fn the_proxy_is_configured_as_a_user_would() {
    let plan = plan("--routing hold_limit_s=5").unwrap();
    let config = crate::fleet::proxy_config(
        &plan,
        Policy::MinTtft,
        &["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
    );
    let config: toml::Table = toml::from_str(&config).unwrap();
    assert_eq!(config["routing"]["policy"].as_str(), Some("min_ttft"));
    assert_eq!(config["routing"]["hold_limit_s"].as_integer(), Some(5));
    assert_eq!(config["pool"][0]["model"].as_str(), Some("mock"));
    assert_eq!(config["pool"][0]["endpoint"][1]["url"].as_str(), Some("http://127.0.0.1:2"));
}
