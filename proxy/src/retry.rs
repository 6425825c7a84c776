//! How many requests may be asked a second time. Pure: `now` is the time since any fixed start.
//!
//! Retries without a limit make an overload worse: when every engine fails, they multiply the load. So each request earns
//! a share of a retry, and a retry spends a whole one (the token bucket of Finagle's and linkerd's retry budgets).

use std::time::Duration;

/// Retries that a second earns without any traffic, so that rare requests are retried too.
const PER_SECOND: f64 = 1.0;

/// How much may be retried.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Retries that each request earns: 0.2 lets a fifth of all requests be retried.
    pub ratio: f64,
    /// Retries that may be saved up.
    pub burst: f64,
}

/// What may still be retried.
#[derive(Debug)]
pub struct RetryBudget {
    settings: Settings,
    tokens: f64,
    seen: Duration,
}

impl RetryBudget {
    /// A full budget.
    pub fn new(settings: Settings) -> Self {
        Self { settings, tokens: settings.burst, seen: Duration::ZERO }
    }

    /// Goes by other settings; no more stays saved up than they allow.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
        self.earn(0.0);
    }

    /// A new request earns its share.
    pub fn request(&mut self) {
        self.earn(self.settings.ratio);
    }

    /// Whether a retry may be made now; it is spent then.
    pub fn try_retry(&mut self, now: Duration) -> bool {
        let elapsed = now.saturating_sub(self.seen);
        self.seen = self.seen.max(now);
        if self.settings.ratio > 0.0 {
            self.earn(elapsed.as_secs_f64() * PER_SECOND);
        }
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn earn(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(self.settings.burst);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Over any time: no more than what was saved up and what was earned; and a saved-up retry is never refused.
        #[test]
        fn never_more_than_earned(
            ratio in 0.0f64..1.0,
            burst in 1.0f64..20.0,
            steps in prop::collection::vec((any::<bool>(), 0.0f64..0.5), 1..300),
        ) {
            let mut budget = RetryBudget::new(Settings { ratio, burst });
            let (mut now, mut requests, mut retries, mut tried) = (0.0, 0.0, 0.0, 0.0);
            for (is_request, later) in steps {
                now += later;
                if is_request {
                    budget.request();
                    requests += 1.0;
                } else {
                    tried += 1.0;
                    let allowed = budget.try_retry(Duration::from_secs_f64(now));
                    retries += f64::from(u8::from(allowed));
                    prop_assert!(allowed || tried > burst.floor(), "refused with {burst} saved up");
                }
                prop_assert!(retries <= burst + ratio * requests + now * PER_SECOND + 1e-6);
            }
        }
    }

    #[test]
    fn without_a_ratio_only_the_burst_is_retried() {
        let mut budget = RetryBudget::new(Settings { ratio: 0.0, burst: 2.0 });
        let mut at = |second| budget.try_retry(Duration::from_secs(second));
        assert_eq!([at(0), at(1), at(2), at(1_000)], [true, true, false, false]);
    }
}
