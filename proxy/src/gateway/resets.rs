//! HTTP/2 clients that ask and take back, over and over ("rapid reset", CVE-2023-44487): each such request costs the
//! gateway and an engine something and the client nothing, and no limit of streams at one time meets it.
//!
//! h2 itself ends a connection with `ENHANCE_YOUR_CALM` when more than 20 streams were reset before it handed them over,
//! which is what a flood looks like. Here is for the patient: Envoy's rule and figures (`premature_reset_total_stream_count`
//! 500, `premature_reset_min_stream_lifetime_seconds` 1, more than half of them).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// So many streams are judged together: fewer say little of a client.
const STREAMS: u32 = 500;
/// A stream that its client reset before this age was hardly meant.
const EARLY: Duration = Duration::from_secs(1);

/// The streams of one connection.
#[derive(Debug, Default)]
pub(super) struct Resets {
    ended: AtomicU32,
    early: AtomicU32,
    flood: AtomicBool,
}

impl Resets {
    /// A stream ended at this `age`; `left`: the client reset it.
    pub(super) fn ended(&self, left: bool, age: Duration) {
        if left && age < EARLY {
            self.early.fetch_add(1, Ordering::Relaxed);
        }
        if self.ended.fetch_add(1, Ordering::Relaxed) + 1 < STREAMS {
            return;
        }
        self.ended.store(0, Ordering::Relaxed);
        if self.early.swap(0, Ordering::Relaxed) > STREAMS / 2 {
            self.flood.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the client is to be got rid of.
    pub(super) fn is_flood(&self) -> bool {
        self.flood.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flood(streams: impl Iterator<Item = (bool, u64)>) -> bool {
        let resets = Resets::default();
        streams.for_each(|(left, ms)| resets.ended(left, Duration::from_millis(ms)));
        resets.is_flood()
    }

    #[test]
    fn more_than_half_left_at_once_is_a_flood() {
        assert!(flood((0..500).map(|n| (n % 100 < 51, 1))));
        assert!(flood((0..1_000).map(|n| (n >= 500, 1))), "what was good before does not excuse it");
    }

    #[test]
    fn negative_control_half_or_late_or_few_is_none() {
        assert!(!flood((0..10_000).map(|n| (n % 2 == 0, 1))));
        assert!(!flood((0..10_000).map(|_| (true, 1_000))));
        assert!(!flood((0..499).map(|_| (true, 1))));
    }
}
