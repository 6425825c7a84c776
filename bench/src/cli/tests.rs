use super::*;

fn args(line: &str) -> Result<ReplayArgs, Error> {
    let cli = parse(line.split_whitespace().map(Into::into))?.expect("no help was asked for");
    let Command::Replay(args) = cli.command else { panic!("not a replay") };
    Ok(*args)
}

fn usage(line: &str) -> String {
    let error = args(line).unwrap_err();
    assert_eq!(error.exit_code(), 64, "{line}");
    error.to_string()
}

const BASE: &str = "larder-bench replay --trace t.jsonl --format agentic";

#[test]
fn defaults_are_the_public_point() {
    let args = args(BASE).unwrap();
    assert_eq!((args.engines, args.capacity, args.seed), (4, 0.1, 1));
    assert_eq!(args.policy, [Policy::RoundRobin, Policy::Larder]);
}

#[test]
fn policies_are_a_list_of_known_names() {
    let all = args(&format!("{BASE} --policy larder,round_robin,session_hash,min_ttft")).unwrap().policy;
    assert_eq!(
        all.iter().map(|policy| policy.name()).collect::<Vec<_>>(),
        ["larder", "round_robin", "session_hash", "min_ttft"]
    );
    let error = usage(&format!("{BASE} --policy larder,magic"));
    for name in ["magic", "larder", "round_robin", "session_hash", "min_ttft"] {
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn unknown_formats_and_impossible_values_are_usage_errors_that_list_what_is_known() {
    let error = usage("larder-bench replay --trace t --format csv");
    assert!(error.contains("agentic") && error.contains("mooncake"), "{error}");
    for bad in [
        "--capacity 0",
        "--capacity x",
        "--capacity 11",
        "--engines 0",
        "--duration-s -1",
        "--time-scale nan",
        "--no-such",
    ] {
        usage(&format!("{BASE} {bad}"));
    }
    usage("larder-bench replay --format agentic");
    usage("larder-bench frobnicate");
    usage("larder-bench");
}

#[test]
fn capacity_may_be_written_as_percent() {
    assert_eq!(args(&format!("{BASE} --capacity 30%")).unwrap().capacity, 0.3);
}

#[test]
fn names_in_results_are_the_names_on_the_command_line() {
    for policy in Policy::value_variants() {
        assert_eq!(policy.to_possible_value().unwrap().get_name(), policy.name());
        assert_eq!(serde_json::to_value(policy).unwrap(), policy.name());
    }
}
