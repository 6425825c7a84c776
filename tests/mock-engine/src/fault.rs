//! Faults to order: what a broken engine does to its clients, on demand and countable.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing: ends an earlier fault.
    #[default]
    None,
    /// The process exits without a word, at the request or after `chunks` chunks of its stream.
    Die,
    /// The request is read and never answered, or its stream stops after `chunks` chunks.
    Hang,
    /// The listener closes for `delay_s`, idle connections too: clients see "connection refused".
    Refuse,
    /// TCP reset after `chunks` chunks (default 3; 0: before the head). Of an unstreamed answer half is sent.
    ResetMidStream,
    /// The request waits `delay_s` before it enters the engine.
    Slow,
    /// `status` is answered instead.
    Status,
    /// `cached_tokens` is reported whatever the truth.
    LieCached,
}

/// The body of `POST /debug/fault`. Times are real seconds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub kind: Kind,
    /// Requests that are served as usual first. Counted are POST requests outside /debug, or with `all_paths`
    /// all requests outside /debug.
    #[serde(default)]
    pub after: u64,
    /// Requests that are hit, then all is well again; none: every one from there on.
    pub count: Option<u64>,
    /// For `status`: 400 to 599.
    #[serde(default = "default_status")]
    pub status: u16,
    /// For `slow` and `refuse`.
    #[serde(default = "default_delay_s")]
    pub delay_s: f64,
    /// For `die`, `hang` and `reset_mid_stream`.
    pub chunks: Option<u32>,
    /// For `lie_cached`.
    #[serde(default)]
    pub cached_tokens: u32,
    /// Whether /health, /metrics and all else but /debug are hit as well.
    #[serde(default)]
    pub all_paths: bool,
}

fn default_status() -> u16 {
    500
}

fn default_delay_s() -> f64 {
    1.0
}

/// A longer delay is a mistake in a test, not a fault.
pub const DELAY_MAX_S: f64 = 3600.0;

/// Chunks sent before `reset_mid_stream` when the order doesn't say.
const RESET_CHUNKS: u32 = 3;

impl Fault {
    /// Refuses values that would not do what they say.
    ///
    /// # Errors
    /// The complaint, with the value.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=DELAY_MAX_S).contains(&self.delay_s) {
            return Err(format!("delay_s {} must be from 0 to {DELAY_MAX_S}", self.delay_s));
        }
        if !(400..=599).contains(&self.status) {
            return Err(format!("status {} must be from 400 to 599", self.status));
        }
        Ok(())
    }

    /// Chunks to send before the fault strikes; none: it strikes before the head.
    pub fn chunks_before(&self) -> Option<u32> {
        match self.kind {
            Kind::ResetMidStream => Some(self.chunks.unwrap_or(RESET_CHUNKS)).filter(|chunks| *chunks > 0),
            Kind::Die | Kind::Hang => self.chunks.filter(|chunks| *chunks > 0),
            _ => None,
        }
    }
}

/// The fault in force and the requests it has seen.
#[derive(Debug, Default)]
pub struct Faults {
    current: Fault,
    seen: u64,
}

impl Faults {
    /// Puts `fault` in force in place of the one before.
    pub fn set(&mut self, fault: Fault) {
        *self = Self { current: fault, seen: 0 };
    }

    /// Counts a request and says what it has to suffer.
    pub fn strike(&mut self, is_work: bool) -> Option<Fault> {
        let fault = &self.current;
        if fault.kind == Kind::None || !(is_work || fault.all_paths) {
            return None;
        }
        let number = self.seen;
        self.seen += 1;
        let until = fault.count.map_or(u64::MAX, |count| fault.after.saturating_add(count));
        (fault.after..until).contains(&number).then(|| fault.clone())
    }
}
