use super::*;

#[test]
fn medians_are_of_the_middle() {
    assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    assert!(median([]).is_nan());
}

#[test]
fn a_row_is_medians_of_rates_and_the_sum_of_cpu_time() {
    let pass = |wall_ms, cpu_ms| Pass {
        bytes: 1_000_000_000,
        wall: Duration::from_millis(wall_ms),
        cpu: Duration::from_millis(cpu_ms),
    };
    let row = row("host", "put", 4096, &[pass(500, 100), pass(250, 300), pass(1000, 200)], &[pass(200, 0)]);
    assert_eq!((row.gb_per_s, row.limit_gb_per_s), (2.0, Some(5.0)));
    assert!((row.cpu_s_per_gb - 0.2).abs() < 1e-9);
}

/// The form that readers of the file count on.
#[test]
fn the_json_has_its_form() {
    let row = row("redis", "get", 4096, &[], &[]);
    let report = Report {
        rows: vec![Row { gb_per_s: 1.0, cpu_s_per_gb: 2.0, ..row }],
        lookup_2000_us_p50: 3.0,
        lease_visible_us_p50: 4.0,
        catalog_bytes_per_chunk: 5.0,
        open_million_s: 6.0,
    };
    let expected = serde_json::json!({
        "rows": [{"path": "redis", "op": "get", "chunk_bytes": 4096, "gb_per_s": 1.0, "limit_gb_per_s": null, "cpu_s_per_gb": 2.0}],
        "lookup_2000_us_p50": 3.0,
        "lease_visible_us_p50": 4.0,
        "catalog_bytes_per_chunk": 5.0,
        "open_million_s": 6.0,
    });
    assert_eq!(serde_json::to_value(&report).unwrap(), expected);
}
