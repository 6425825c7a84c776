//! A Prometheus histogram of seconds.

/// Upper bounds in seconds of vLLM's `time_to_first_token_seconds` (`vllm/v1/metrics/loggers.py`).
pub(crate) const BOUNDS_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];

/// Counts per bound (not cumulative), the rest in the last place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    pub(crate) counts: [u64; BOUNDS_S.len() + 1],
    pub(crate) sum_s: f64,
}

impl Histogram {
    pub(crate) fn observe(&mut self, seconds: f64) {
        self.counts[BOUNDS_S.partition_point(|bound| *bound < seconds)] += 1;
        self.sum_s += seconds;
    }
}
