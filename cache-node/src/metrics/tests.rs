use std::collections::BTreeSet;

use super::*;

#[test]
fn names_are_unique_and_follow_the_convention() {
    let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len());
    for metric in METRICS {
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
        assert!(metric.name.starts_with("larder_node_") && metric.help.ends_with('.'), "{}", metric.name);
    }
}

#[test]
fn text_and_json_show_the_same() {
    let stats = Stats { chunks: 7, ..Stats::default() };
    let text = render(&stats);
    assert!(text.contains("# TYPE larder_node_held_chunks gauge\nlarder_node_held_chunks 7\n"), "{text}");
    assert_eq!(json(&stats)["held_chunks"], 7);
}
