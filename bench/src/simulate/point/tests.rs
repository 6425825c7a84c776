use super::*;
use crate::simulate::workload::tests::{request, trace};

fn work() -> Workload {
    let requests = (1..=10).map(|turn| request(5.0, 20 * turn, &[(0, 2 * turn)])).collect();
    Workload::new(&trace(&[("a", requests)]), 10).unwrap()
}

fn router(policy: Name) -> RouterSetup {
    RouterSetup { policy, view: View::Exact, hold_limit_s: 30.0, max_held: 4_096, seed: 1 }
}

fn spec() -> Spec {
    Spec {
        work: 0,
        endpoints: 2,
        capacity: 0.5,
        live: 1,
        starts_over_s: 300.0,
        model: None,
        users: None,
        warehouse_x: None,
        link: Link::Own,
        rate: None,
        utilization: 0.6,
        decode_s: None,
        prefill: PrefillKind::Fcfs,
        memory: Memory::Pinned,
        partial: 4,
    }
}

#[test]
fn capacity_and_rate_are_the_published_definitions() {
    let work = work();
    assert_eq!(work.unique_tokens, 200);
    assert_eq!(spec().blocks(&work), 5);
    assert_eq!(spec().rate(&work).unwrap(), (312.5, 1.0));
    let setup = spec().setup(&work, router(Name::PooledLru)).unwrap();
    assert!(setup.cluster.pooled && setup.cluster.blocks == 10);
}

/// Replicas that are busy for 60 % of the time have so much less of it for prefill as the answers take.
#[test]
fn the_load_of_an_open_loop_includes_the_answers() {
    let requests = (1..=10).map(|turn| request(0.0, 20 * turn, &[(0, 2 * turn)])).collect();
    let mut trace = trace(&[("", requests)]);
    trace.format = Format::Mooncake;
    let starts = trace.sessions[0].requests.iter_mut().zip(0_u32..);
    starts.for_each(|(request, turn)| request.at_s = 10.0 * f64::from(turn));
    let work = Workload::new(&trace, 10).unwrap();
    let answers: u64 = work.jobs.iter().map(|job| job.output).sum();
    let rate = |decode_s| Spec { decode_s: Some(decode_s), ..spec() }.rate(&work);
    let (busy_s, free) = (90.0 * 2.0 * 0.6, rate(0.0).unwrap().0);
    let loaded = rate(0.5).unwrap().0;
    assert!((loaded * (busy_s - 0.5 * answers as f64) - free * busy_s).abs() < 1e-6, "{free} {loaded}");
    assert!(rate(busy_s).unwrap_err().to_string().contains("--decode-s"));
    let model = Spec { model: Some(Model::Llama70b), ..spec() };
    let stretch = |decode_s| Spec { decode_s, ..model }.rate(&work).unwrap().1;
    let added = stretch(None) - stretch(Some(0.0));
    assert!((added - answers as f64 / 2_500.0 / busy_s).abs() < 1e-9, "{added}");
}

#[test]
fn a_model_brings_capacity_speed_decode_and_link() {
    let spec = Spec { model: Some(Model::Llama70b), warehouse_x: Some(10.0), users: Some(4), ..spec() };
    let setup = spec.setup(&work(), router(Name::RoundRobin)).unwrap();
    assert_eq!((setup.cluster.blocks, setup.cluster.rate), (128_000, 8_000.0));
    assert_eq!(setup.cluster.decode_s, 1.0 / 2_500.0);
    let warehouse = setup.cluster.warehouse.unwrap();
    assert_eq!((warehouse.blocks, warehouse.shared), (2_560_000, false));
    // 122,500 tokens of 320 KB at 20 GB/s.
    assert!((122_500.0 * warehouse.seconds_per_token - 1.96).abs() < 1e-9);
}

#[test]
fn the_json_has_the_published_fields_and_how_many_were_refused() {
    let work = work();
    let figures = spec().run(&work, router(Name::RoundRobin)).unwrap();
    let point = Point::new(&work, spec(), Name::RoundRobin, View::Exact, &[figures, figures]);
    let json = serde_json::to_value(&point).unwrap();
    let mut fields: Vec<&String> = json.as_object().unwrap().keys().collect();
    fields.sort_unstable();
    let mut expected = [
        "trace",
        "policy",
        "view",
        "endpoints",
        "capacity",
        "sessions",
        "model",
        "users",
        "warehouse_x",
        "link",
        "seeds",
        "hit_rate",
        "combined_hit_rate",
        "imbalance",
        "ttft_mean_s",
        "ttft_p50_s",
        "ttft_p99_s",
        "requests_per_s",
        "gpu_s_per_request",
        "bytes_moved",
        "refused",
    ];
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!((&json["policy"], &json["seeds"]), (&"round_robin".into(), &2.into()));
    assert!(crate::simulate::report::table(&[point]).contains("round_robin"));
}
