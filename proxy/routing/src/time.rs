//! Time as an argument: this crate never reads a clock.

use std::time::Duration;

/// An instant, in seconds since an origin of the caller's choice (the same for every call on one [`Fleet`]).
///
/// Always finite and never negative, whatever it is made from. Instants may arrive out of order: differences
/// saturate at zero, so an odd order of events costs accuracy and nothing else.
///
/// [`Fleet`]: crate::Fleet
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default)]
pub struct Now(f64);

impl Now {
    /// The origin itself.
    pub const ZERO: Now = Now(0.0);

    /// The instant `seconds` after the origin; negative, infinite and NaN values become the origin.
    pub fn from_secs_f64(seconds: f64) -> Self {
        if seconds.is_finite() && seconds > 0.0 { Now(seconds) } else { Now::ZERO }
    }

    /// Seconds since the origin.
    pub fn as_secs_f64(self) -> f64 {
        self.0
    }

    /// Seconds from `earlier` to `self`, zero when `earlier` is later.
    pub fn since(self, earlier: Now) -> f64 {
        (self.0 - earlier.0).max(0.0)
    }

    /// The instant `seconds` later; negative and non-finite spans count as zero.
    pub(crate) fn plus(self, seconds: f64) -> Now {
        if seconds.is_finite() { Now(self.0 + seconds.max(0.0)) } else { self }
    }
}

impl From<Duration> for Now {
    fn from(since_origin: Duration) -> Self {
        Now(since_origin.as_secs_f64())
    }
}
