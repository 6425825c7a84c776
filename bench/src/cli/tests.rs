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

fn simulate(line: &str) -> Result<SimulateArgs, Error> {
    let line = format!("larder-bench simulate --trace t --format agentic {line}");
    let cli = parse(line.split_whitespace().map(Into::into))?.expect("no help was asked for");
    let Command::Simulate(args) = cli.command else { panic!("not a simulation") };
    Ok(*args)
}

#[test]
fn simulate_takes_the_published_command() {
    let args = simulate(
        "--endpoints 4 --capacity 0.10 --sessions 200 --policy larder,chwbl,pooled_lru --view estimated --seeds 3 \
         --model llama-70b --users 8 --warehouse 10 --link shared --from-s 1800 --hold-limit 300 --json f",
    )
    .unwrap();
    assert_eq!((args.endpoints, args.capacity, args.seeds, args.users), (4, 0.1, 3, Some(8)));
    assert_eq!(
        args.policy.iter().map(|name| name.name()).collect::<Vec<_>>(),
        ["larder", "chwbl", "pooled_lru"]
    );
    assert_eq!(simulate("").unwrap().hold_limit, 30.0);
    for bad in
        ["--users 4", "--warehouse 10", "--hold-limit -1", "--standard --full", "--policy magic", "--seeds 0"]
    {
        assert_eq!(simulate(bad).unwrap_err().exit_code(), 64, "{bad}");
    }
}

#[test]
fn simulated_policies_have_the_names_of_the_results() {
    for name in crate::simulate::Name::value_variants() {
        assert_eq!(name.to_possible_value().unwrap().get_name(), name.name());
        assert_eq!(serde_json::to_value(name).unwrap(), name.name());
    }
}
