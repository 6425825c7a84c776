//! What is learned from answers: how many tokens a prompt has, and how long an endpoint takes for them.

mod prompt;
mod ttft;

pub(crate) use prompt::PromptModel;
pub(crate) use ttft::{TtftLine, TtftModel, TtftSample};

/// `value` if it is finite, else `otherwise`; then within the bounds.
pub(crate) fn bounded(value: f64, otherwise: f64, low: f64, high: f64) -> f64 {
    (if value.is_finite() { value } else { otherwise }).clamp(low, high)
}
