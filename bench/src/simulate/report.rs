//! Results of `simulate` for people (a table) and for programs (JSON).

use super::point::Point;
use super::{Link, Memory, PrefillKind};
use crate::cli::SimulateArgs;
use crate::error::Error;
use std::path::Path;

/// What all points of a command have in common and their own fields do not say.
#[derive(serde::Serialize)]
struct Settings {
    hold_limit_s: f64,
    prefill: PrefillKind,
    partial_prefills: Option<u64>,
    memory: Memory,
    link: Link,
    from_s: f64,
}

#[derive(serde::Serialize)]
struct Results<'a> {
    settings: Settings,
    points: &'a [Point],
}

/// Writes `{"settings": {...}, "points": [...]}`.
///
/// # Errors
/// [`Error::File`] if it cannot be written.
pub fn write_json(path: &Path, args: &SimulateArgs, points: &[Point]) -> Result<(), Error> {
    let settings = Settings {
        hold_limit_s: args.hold_limit,
        prefill: args.prefill,
        partial_prefills: (args.prefill == PrefillKind::Chunked).then_some(args.partial_prefills),
        memory: args.memory,
        link: args.link,
        from_s: args.from_s,
    };
    let mut text = serde_json::to_string_pretty(&Results { settings, points })
        .map_err(|error| Error::Replay(format!("cannot encode the results: {error}")))?;
    text.push('\n');
    std::fs::write(path, text).map_err(Error::file("write", path))
}

/// The result table.
#[must_use]
pub fn table(points: &[Point]) -> String {
    let header = [
        "point",
        "policy",
        "view",
        "hit %",
        "combined",
        "imbalance",
        "TTFT mean s",
        "p50",
        "p99",
        "requests/s",
        "GPU s/req",
        "moved TB",
    ];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).to_vec()];
    rows.extend(points.iter().map(|point| {
        vec![
            point.setting.clone(),
            point.policy.to_owned(),
            point.view.name().to_owned(),
            format!("{:.1}", 100.0 * point.hit_rate),
            format!("{:.1}", 100.0 * point.combined_hit_rate),
            format!("{:.2}", point.imbalance),
            format!("{:.2}", point.ttft_mean_s),
            format!("{:.2}", point.ttft_p50_s),
            format!("{:.1}", point.ttft_p99_s),
            format!("{:.3}", point.requests_per_s),
            format!("{:.2}", point.gpu_s_per_request),
            format!("{:.1}", point.bytes_moved / 1e12),
        ]
    }));
    let mut text = crate::report::align(&rows);
    text.push_str("Simulated: one prefill model, public traces, no engine. Times are the trace's.\n");
    text
}
