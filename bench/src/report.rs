//! Results for people (a table) and for programs (JSON).

use crate::error::Error;
use crate::measure::{Results, Run};
use crate::plan::{Plan, Scale};
use std::fmt::Write as _;
use std::path::Path;

/// What the figures depend on, in a few lines.
#[must_use]
pub fn scale_lines(scale: &Scale) -> String {
    let mut text = String::new();
    let live = match scale.live_sessions {
        0 => "open loop by recorded arrivals".to_owned(),
        k => format!("{k} of {} sessions live, think time up to {:.0} s", scale.sessions, scale.think_cap_s),
    };
    let _ =
        writeln!(text, "trace    {}: {} requests, {live}, seed {}", scale.trace, scale.requests, scale.seed);
    let _ = writeln!(
        text,
        "engines  {} mock engines: {} KV tokens each ({:.1} % of the distinct blocks in all), {:.0} tok/s prefill, \
         answers of at most {} tokens at {} s",
        scale.engines,
        scale.capacity.kv_tokens_per_engine,
        100.0 * scale.capacity.share,
        scale.prefill_tokens_per_s,
        scale.output_tokens,
        scale.decode_step_s
    );
    let _ = writeln!(
        text,
        "scale    1 wall second = {:.1} trace seconds, {} bytes of text per token, prompt chain runs of {} bytes; at \
         most {:.0} s wall time a policy",
        scale.time_scale, scale.bytes_per_token, scale.run_bytes, scale.duration_s
    );
    text
}

/// The result table, with the unit of its times.
#[must_use]
pub fn table(runs: &[Run]) -> String {
    let header =
        ["policy", "hit rate", "imbalance", "TTFT mean", "p50", "p99", "requests/s", "requests", "errors"];
    let mut rows: Vec<Vec<String>> = vec![header.iter().map(ToString::to_string).collect()];
    for run in runs {
        let seconds = |value: Option<f64>| value.map_or("-".into(), |s| format!("{s:.2} s"));
        rows.push(vec![
            run.policy.into(),
            run.hit_rate.map_or("-".into(), |rate| format!("{:.1} %", 100.0 * rate)),
            run.imbalance.map_or("-".into(), |value| format!("{value:.2}")),
            seconds(run.ttft_mean_s),
            seconds(run.ttft_p50_s),
            seconds(run.ttft_p99_s),
            run.requests_per_s.map_or("-".into(), |rate| format!("{rate:.3}")),
            format!("{}{}", run.requests, if run.truncated { " (cut)" } else { "" }),
            run.errors.to_string(),
        ]);
    }
    let mut text = align(&rows);
    text.push_str("Times and rates are in trace seconds (wall time x time scale).\n");
    if runs.iter().any(|run| run.truncated) {
        text.push_str(
            "(cut): the wall budget (--duration-s) ended before the trace; runs cover different requests.\n",
        );
    }
    for run in runs.iter().filter(|run| run.errors > 0) {
        let _ = writeln!(text, "{}: {} errors, the first of them:", run.policy, run.errors);
        for sample in &run.error_samples {
            let _ = writeln!(text, "  {sample}");
        }
    }
    text
}

/// Live and simulated hit rates side by side, and whether none are further apart than `points` percentage points. A run
/// that was cut short agrees with nothing.
#[must_use]
pub fn agreement(runs: &[Run], points: f64) -> (String, bool) {
    let (mut text, mut agrees) = (String::new(), true);
    for run in runs {
        let (Some(live), Some(simulated)) = (run.hit_rate, run.simulated_hit_rate) else {
            let _ = writeln!(text, "{}: not compared with the simulation", run.policy);
            continue;
        };
        let apart = 100.0 * (live - simulated).abs();
        let verdict = match (run.truncated, apart <= points) {
            (true, _) => "cut short, which is no agreement",
            (false, true) => "agrees",
            (false, false) => "DIFFERS",
        };
        agrees &= verdict == "agrees";
        let _ = writeln!(
            text,
            "{}: hit rate {:.1} % live, {:.1} % simulated, {apart:.1} points apart (at most {points}): {verdict}",
            run.policy,
            100.0 * live,
            100.0 * simulated,
        );
    }
    (text, agrees)
}

/// Columns as wide as their widest cell; the first flush left, figures flush right.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ =
                if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
        if number == 0 {
            let total = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
            text.push_str(&"-".repeat(total));
            text.push('\n');
        }
    }
    text
}

/// Writes the results file.
///
/// # Errors
/// [`Error::File`] if it cannot be written.
pub fn write_json(path: &Path, results: &Results) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(results)
        .map_err(|error| Error::Replay(format!("cannot encode the results: {error}")))?;
    text.push('\n');
    std::fs::write(path, text).map_err(Error::file("write", path))
}

/// The results of all runs of a plan.
#[must_use]
pub fn results(plan: &Plan, runs: Vec<Run>) -> Results {
    Results { scale: plan.scale.clone(), runs }
}

#[cfg(test)]
pub(crate) mod tests;
