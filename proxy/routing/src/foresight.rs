//! Whether an endpoint's waits come out as foreseen. Holding a request back is worth something only where its turn
//! can be told in advance: an engine that prefills several prompts at once, or that others send requests to as
//! well, is not such a one.

/// Share of one answer.
const STEP: f64 = 1.0 / 32.0;
/// Errors below this, in seconds, do not count: the proxy's own look-ahead is as long.
const SLACK_S: f64 = 0.25;
/// Waits misjudged by more than half end the holding ...
const OFF: f64 = 0.5;
/// ... until they are misjudged by less than this.
const ON: f64 = 0.35;

/// Moving relative error of the foreseen time to first token.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Foresight {
    error: f64,
    lost: bool,
}

impl Foresight {
    /// A first token was foreseen in `foreseen_s` and came after `seconds`.
    pub(crate) fn observe(&mut self, foreseen_s: f64, seconds: f64) {
        let off = ((seconds - foreseen_s).abs() - SLACK_S).max(0.0);
        let error = off / seconds.max(foreseen_s).max(SLACK_S);
        if error.is_finite() {
            self.error += (error - self.error) * STEP;
        }
        self.lost = self.error > if self.lost { ON } else { OFF };
    }

    /// Whether waits are foreseen well enough to hold requests back.
    pub(crate) fn holds(&self) -> bool {
        !self.lost
    }

    /// The moving error, 0 to 1.
    pub(crate) fn error(&self) -> f64 {
        self.error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_wrong_ends_it_and_a_third_wrong_does_not_bring_it_back() {
        let mut foresight = Foresight::default();
        (0..200).for_each(|_| foresight.observe(10.0, 14.0));
        assert!(foresight.holds(), "{foresight:?}");
        (0..200).for_each(|_| foresight.observe(10.0, 40.0));
        assert!(!foresight.holds());
        (0..400).for_each(|_| foresight.observe(10.0, 16.5));
        assert!(!foresight.holds(), "{foresight:?}");
        (0..400).for_each(|_| foresight.observe(10.0, 11.0));
        assert!(foresight.holds());
    }

    #[test]
    fn what_is_short_is_never_wrong() {
        let mut foresight = Foresight::default();
        (0..200).for_each(|_| foresight.observe(0.01, 0.2));
        assert_eq!((foresight.holds(), foresight.error()), (true, 0.0));
        foresight.observe(f64::NAN, f64::INFINITY);
        assert!(foresight.error().is_finite());
    }
}
