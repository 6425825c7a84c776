//! When an endpoint that fails is left alone, and when it is tried again. Pure: `now` is the time since any fixed start.
//!
//! Enough failures in a row open the breaker. After a while one request is let through as a probe: if it fares well the
//! breaker closes, else it stays open for twice as long, up to a limit. Any success closes it: an endpoint that
//! answers is there.

use std::time::Duration;

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Failures in a row that open it; 0: it never opens.
    pub failures: u32,
    /// How long it is open at first.
    pub open: Duration,
    /// How long it is open at most, however often probes fail.
    pub open_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed { failures: u32 },
    Open { until: Duration, wait: Duration },
    Probing { wait: Duration },
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    settings: Settings,
    state: State,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: Settings) -> Self {
        Self { settings, state: State::Closed { failures: 0 } }
    }

    /// Goes by other settings from the next event on.
    pub fn set(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Whether a request may go there: it is closed, or due for a probe.
    pub fn allows(&self, now: Duration) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, .. } => now >= until,
            State::Probing { .. } => false,
        }
    }

    /// Whether it is closed.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// A request goes there. Says whether it is the probe, whose end must be told as such.
    pub fn begin(&mut self, now: Duration) -> bool {
        match self.state {
            State::Open { until, wait } if now >= until => {
                self.state = State::Probing { wait };
                true
            }
            _ => false,
        }
    }

    /// A request fared well.
    pub fn success(&mut self) {
        self.state = State::Closed { failures: 0 };
    }

    /// A request failed by the endpoint's fault. Says whether that opened the breaker.
    pub fn failure(&mut self, now: Duration, probe: bool) -> bool {
        let wait = match self.state {
            State::Closed { failures } => {
                let failures = failures.saturating_add(1);
                if self.settings.failures == 0 || failures < self.settings.failures {
                    self.state = State::Closed { failures };
                    return false;
                }
                self.settings.open
            }
            State::Probing { wait } if probe => wait.saturating_mul(2).min(self.settings.open_max),
            // Sent before it opened, or since nobody else was left: known already.
            _ => return false,
        };
        self.state = State::Open { until: now.saturating_add(wait), wait };
        true
    }

    /// The probe ended without telling anything, as when its client left: the next request is one.
    pub fn probe_lost(&mut self, now: Duration) {
        if let State::Probing { wait } = self.state {
            self.state = State::Open { until: now, wait };
        }
    }
}

#[cfg(test)]
mod tests;
