//! Rules about what the documentation must say.

use std::collections::BTreeSet;

use super::rust;
use super::tree::File;

/// What all metrics of ours begin with.
const PREFIX: &str = "larder_";

/// Where a program's metrics are: `PROGRAM/src/metrics.rs`, or a folder of that name.
const METRICS: &str = "/src/metrics";

/// The metrics that a page describes: the first cell of each row of a table, in backticks.
pub(crate) fn documented_metrics(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.filter_map(|row| row.split('`').next());
    names.filter(|name| is_metric(name)).map(str::to_owned).collect()
}

/// The metrics that programs export: the strings of their form in `src/metrics.rs` and `src/metrics/`.
pub(super) fn exported_metrics(sources: &[File]) -> BTreeSet<String> {
    let tables =
        sources.iter().filter(|file| file.path.contains(METRICS) && !file.path.ends_with("tests.rs"));
    tables.flat_map(|file| rust::strings(&file.text)).filter(|text| is_metric(text)).collect()
}

fn is_metric(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(PREFIX) && !name.ends_with('_') && name.chars().all(plain)
}

/// Metrics that are exported and not described, and those described and not exported.
pub(super) fn undocumented_metrics(sources: &[File], pages: &[File]) -> Vec<String> {
    let exported = exported_metrics(sources);
    let documented: BTreeSet<String> = pages.iter().flat_map(|page| documented_metrics(&page.text)).collect();
    let missing = exported.difference(&documented).map(|name| format!("{name} is not described in docs/"));
    let stale = documented.difference(&exported);
    missing.chain(stale.map(|name| format!("{name} is described in docs/ and exported by nobody"))).collect()
}
