//! How much may be written: a bucket that fills with time, for the sake of the drive's endurance.

use std::time::Duration;

/// How long the bucket takes to fill: a burst of this many seconds' writing is let through at once, since chunks are
/// admitted a prompt at a time.
const BURST: Duration = Duration::from_secs(10);

/// Bytes that may be written now.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Bytes a second; none is no limit.
    rate: Option<u64>,
    pub(super) allowance: u64,
    /// Up to when the bucket was filled.
    filled: Duration,
}

impl Bucket {
    pub(super) fn new(rate: Option<u64>, now: Duration) -> Self {
        Self { rate, allowance: burst(rate), filled: now }
    }

    /// Whether `bytes` may be written now.
    pub(super) fn allows(&mut self, bytes: u64, now: Duration) -> bool {
        let Some(rate) = self.rate else { return true };
        let gained = u128::from(rate) * now.saturating_sub(self.filled).as_nanos() / 1_000_000_000;
        // Time that gains less than a byte is kept for the next call.
        if gained > 0 {
            self.filled = self.filled.max(now);
            let full = u128::from(self.allowance) + gained;
            self.allowance = u64::try_from(full).unwrap_or(u64::MAX).min(burst(self.rate));
        }
        self.allowance >= bytes
    }

    /// Takes what was allowed.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.allowance = self.allowance.saturating_sub(bytes);
    }

    pub(super) fn is_within_its_size(&self) -> bool {
        self.allowance <= burst(self.rate)
    }
}

fn burst(rate: Option<u64>) -> u64 {
    rate.map_or(0, |rate| rate.saturating_mul(BURST.as_secs()))
}
