//! How far what is believed about an endpoint's cache is to be believed.
//!
//! Residency is estimated from the proxy's own history. That is right as long as answers confirm it: an engine that
//! never says how many tokens it found cached, or that finds far fewer than promised, is routed to as before, but
//! silently being wrong is the worst failure of a prefix router, so it is named with its reason.

use std::fmt;

/// Share of one answer in the kept share of promises.
const STEP: f64 = 1.0 / 64.0;
/// Below this kept share an endpoint evidently does not keep what it computes ...
const KEPT_MIN: f64 = 0.25;
/// ... until it is above this again.
const KEPT_AGAIN: f64 = 0.5;
/// Promised answers in a row that told nothing, after which it is no accident. vLLM tells nothing when it found
/// nothing, so a few are ordinary.
const SILENT_MAX: u32 = 32;

/// The state of one endpoint's estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Trust {
    /// From the proxy's own history, confirmed or not yet refuted by answers.
    #[default]
    Estimated,
    /// Its answers never say how many tokens were cached.
    Silent,
    /// It finds far fewer tokens cached than promised.
    Broken,
}

impl Trust {
    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Trust::Estimated => "estimated",
            Trust::Silent => "silent",
            Trust::Broken => "broken",
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trust::Estimated => "cached tokens are estimated from its history",
            Trust::Silent => {
                "its answers never say how many tokens were cached, so that nothing corrects the estimate: start vLLM \
                 with --enable-prompt-tokens-details (SGLang: --enable-cache-report)"
            }
            Trust::Broken => {
                "it finds less than a quarter of the tokens that should be cached: is prefix caching on, and does \
                 nobody else send it requests?"
            }
        })
    }
}

/// What answers said about promises.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promises {
    /// Moving share of promised tokens that were really cached, 0 to 1.
    kept: f64,
    silent: u32,
    broken: bool,
}

impl Default for Promises {
    fn default() -> Self {
        Promises { kept: 1.0, silent: 0, broken: false }
    }
}

impl Promises {
    /// An answer told that `actual` tokens were cached where `promised` should have been.
    pub(crate) fn told(&mut self, promised: f64, actual: f64) {
        self.silent = 0;
        if promised > 0.0 {
            self.kept += ((actual / promised).min(1.0) - self.kept) * STEP;
        } else if actual > 0.0 {
            self.kept += (1.0 - self.kept) * STEP;
        }
        self.broken = self.kept < if self.broken { KEPT_AGAIN } else { KEPT_MIN };
    }

    /// An answer told nothing where a fair share of the prompt was promised.
    pub(crate) fn untold(&mut self) {
        self.silent = self.silent.saturating_add(1);
    }

    pub(crate) fn kept(&self) -> f64 {
        self.kept
    }

    pub(crate) fn trust(&self) -> Trust {
        if self.broken {
            Trust::Broken
        } else if self.silent >= SILENT_MAX {
            Trust::Silent
        } else {
            Trust::Estimated
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_broken_promises_have_their_names_and_end() {
        let mut promises = Promises::default();
        (0..31).for_each(|_| promises.untold());
        assert_eq!(promises.trust(), Trust::Estimated);
        promises.untold();
        assert_eq!(promises.trust(), Trust::Silent);
        promises.told(100.0, 100.0);
        assert_eq!(promises.trust(), Trust::Estimated);
        (0..200).for_each(|_| promises.told(100.0, 0.0));
        assert_eq!(promises.trust(), Trust::Broken);
        (0..30).for_each(|_| promises.told(100.0, 100.0));
        assert_eq!(promises.trust(), Trust::Broken, "not yet: {promises:?}");
        (0..30).for_each(|_| promises.told(0.0, 100.0));
        assert_eq!(promises.trust(), Trust::Estimated);
    }
}
