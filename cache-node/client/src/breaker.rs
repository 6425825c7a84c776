//! Failfast: after failures in a row calls fail at once; then one call in a while is tried, and its success opens the
//! way again. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// When calls fail at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerSettings {
    /// Failures in a row after which calls fail at once.
    pub failures_max: u32,
    /// How long until the first try after that; doubled after each try that fails.
    pub pause: Duration,
    /// The longest time between tries.
    pub pause_max: Duration,
}

impl Default for BreakerSettings {
    /// Three deadlines lost, then a try after 200 ms, and at least every 5 s: a restarted node is found within that.
    fn default() -> Self {
        Self { failures_max: 3, pause: Duration::from_millis(200), pause_max: Duration::from_secs(5) }
    }
}

/// Why a call is not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) failures: u32,
    pub(crate) retry_in: Duration,
}

/// A call that was let through, and whether it is the one try.
#[derive(Debug)]
pub(crate) struct Attempt {
    probe: bool,
}

/// Open => (Open | Closed); Closed => Trying; Trying => (Open | Closed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls go through.
    Open,
    /// Calls fail until the time comes.
    Closed { until: Instant },
    /// One call is being tried; the others fail.
    Trying,
}

#[derive(Debug)]
pub(crate) struct Breaker {
    settings: BreakerSettings,
    state: State,
    failures: u32,
    pause: Duration,
}

impl Breaker {
    pub(crate) fn new(settings: BreakerSettings) -> Self {
        Self { pause: settings.pause, settings, state: State::Open, failures: 0 }
    }

    pub(crate) fn would_try(&self, now: Instant) -> bool {
        match self.state {
            State::Open => true,
            State::Closed { until } => now >= until,
            State::Trying => false,
        }
    }

    pub(crate) fn begin(&mut self, now: Instant) -> Result<Attempt, Closed> {
        match self.state {
            State::Open => Ok(Attempt { probe: false }),
            State::Closed { until } if now >= until => {
                self.state = State::Trying;
                Ok(Attempt { probe: true })
            }
            State::Closed { until } => Err(Closed { failures: self.failures, retry_in: until - now }),
            State::Trying => Err(Closed { failures: self.failures, retry_in: Duration::ZERO }),
        }
    }

    pub(crate) fn end(&mut self, attempt: Attempt, failed: bool, now: Instant) {
        if !failed {
            // Also of a call that began before: whoever answered lives.
            self.state = State::Open;
            self.failures = 0;
            self.pause = self.settings.pause;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        match self.state {
            State::Open if self.failures >= self.settings.failures_max => self.close(now),
            State::Trying if attempt.probe => {
                self.pause = (self.pause * 2).min(self.settings.pause_max);
                self.close(now);
            }
            _ => {}
        }
    }

    /// An attempt whose caller went away. A try left so is due again at once.
    pub(crate) fn abandon(&mut self, attempt: &Attempt, now: Instant) {
        if attempt.probe && self.state == State::Trying {
            self.state = State::Closed { until: now };
        }
    }

    fn close(&mut self, now: Instant) {
        self.state = State::Closed { until: now + self.pause };
    }
}

#[cfg(test)]
mod tests;
