//! How many prompts an engine prefills at the same time, and what that means for one more.
//!
//! vLLM and SGLang give a step's tokens to one unfinished prompt after the other by default: first tokens come in the
//! order of dispatch. Engines set to share steps (`--max-num-partial-prefills`), and others by nature, let a short
//! prompt pass a long one. Nobody tells the proxy which; the order of first tokens does. An engine of *width* w is
//! taken to work on the first w prompts it owes, each at an even share of its speed (processor sharing); width 1 is
//! first come, first served.

/// Most prompts at the same time that are told apart.
const WIDTH_MAX: usize = 16;
/// One prompt has passed another when its first token came earlier by more than this share of the other's prefill ...
const PASSED_SHARE: f64 = 1.0 / 8.0;
/// ... and by more than this, in seconds: what is computed in one step comes out in any order.
const PASSED_S: f64 = 0.05;
/// So many prompts in a row that should have passed and did not make the engine narrower by one.
const NARROWER: u32 = 16;
/// After so many dispatches that said nothing about it, one is sent early to see.
const UNTESTED: u32 = 64;
/// A prompt this much shorter than what is ahead of it shows whether it can pass.
const SHORT: f64 = 0.125;

/// A prompt may begin beside others that need less than this share of its own time together: what they lose is at most
/// as much again.
const BESIDE: f64 = 1.0 / 32.0;

/// Moving estimate of how many prompts an engine prefills together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Width {
    width: usize,
    /// Prompts in a row that could have passed at this width and did not.
    stuck: u32,
    /// Dispatches since the last that can tell.
    untested: u32,
}

impl Default for Width {
    fn default() -> Self {
        Width { width: 1, stuck: 0, untested: 0 }
    }
}

impl Width {
    /// 1 or more.
    pub(super) fn get(self) -> usize {
        self.width
    }

    /// A prompt's first token came `seconds` after that of the first one to pass it, with `passed` dispatched before
    /// that one and owed still; its own prefill is `service_s`.
    pub(super) fn was_passed(&mut self, passed: usize, seconds: f64, service_s: f64) {
        if seconds > PASSED_S + PASSED_SHARE * service_s && passed + 1 >= self.width {
            self.width = (passed + 1).min(WIDTH_MAX);
            self.stuck = 0;
        }
    }

    /// A first token came in order, while a prompt `behind` places further back could have been through long ago if
    /// they were worked on together.
    pub(super) fn was_not_passed(&mut self, behind: usize) {
        if behind < self.width {
            self.stuck += 1;
            if self.stuck >= NARROWER {
                self.width -= 1;
                self.stuck = 0;
            }
        }
    }

    /// A prompt of `service_s` was dispatched behind `ahead_s` of work.
    pub(super) fn dispatched(&mut self, service_s: f64, ahead_s: f64) {
        self.untested = if tells(service_s, ahead_s) { 0 } else { self.untested.saturating_add(1) };
    }

    /// Whether to send a prompt of `service_s` early, behind `ahead_s` of work, to see what comes first. It would be
    /// next anyway: all it loses is the chance to be stolen or passed itself.
    pub(super) fn wants_to_see(self, service_s: f64, ahead_s: f64) -> bool {
        self.untested >= UNTESTED && tells(service_s, ahead_s)
    }
}

/// Whether the order of first tokens will show if prompts are worked on together.
pub(super) fn tells(service_s: f64, ahead_s: f64) -> bool {
    service_s <= SHORT * ahead_s && ahead_s > 4.0 * PASSED_S
}

/// Seconds that one more prompt of `own_s` will have waited when it is done, behind prompts with `left` seconds each,
/// in their order, `width` of which are worked on at the same time.
pub(super) fn wait_s(left: &mut [f64], width: usize, own_s: f64) -> f64 {
    let (mut own, mut elapsed) = (own_s, 0.0);
    loop {
        let active: Vec<usize> = (0..left.len()).filter(|&at| left[at] > 0.0).take(width).collect();
        let mine = active.len() < width;
        let sharers = active.len() + usize::from(mine);
        let least = active.iter().map(|&at| left[at]).fold(if mine { own } else { f64::INFINITY }, f64::min);
        elapsed += least * sharers as f64;
        if mine && own <= least {
            return elapsed - own_s;
        }
        active.into_iter().for_each(|at| left[at] -= least);
        own -= if mine { least } else { 0.0 };
    }
}

/// Whether a prompt of `own_s` may begin beside prompts with `left` seconds each: if it would wait for them eight times
/// as long as they lose together by it, or if they are short beside it. Where the gain is less, one after the other has
/// them done sooner on average, and the choice of who is next stays open.
pub(super) fn may_join(left: impl Iterator<Item = f64> + Clone, own_s: f64) -> bool {
    let all: f64 = left.clone().sum();
    let lost: f64 = left.map(|left| left.min(own_s)).sum();
    all * SHORT >= lost || all <= own_s * BESIDE
}

#[cfg(test)]
mod tests;
