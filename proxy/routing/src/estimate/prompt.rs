//! Tokens of a prompt, from its bytes: the proxy has no tokenizer.

use super::bounded;

/// Weight of the configured figure, in prompt tokens seen.
const PRIOR_TOKENS: f64 = 4_096.0;
/// Old prompts fade once this many tokens were seen, so that a change of traffic is followed.
const HORIZON_TOKENS: f64 = 4_194_304.0;
/// A token is hardly ever more than one long word, on average over a prompt. Below a byte it is what a template adds
/// to short prompts, or an imitated engine with shortened text; a sixteenth bounds absurd reports.
const BYTES_PER_TOKEN: (f64, f64) = (0.0625, 32.0);
/// Tokens of one image or audio clip before any was seen: four 512-pixel tiles in common vision models.
const FIRST_MEDIA_TOKENS: f64 = 1_024.0;
/// Bound of one medium, in tokens: an hour of audio at 25 tokens a second is 90,000.
const MEDIA_TOKENS_MAX: f64 = 131_072.0;
/// Share of a new observation in the media figure.
const MEDIA_STEP: f64 = 1.0 / 16.0;

/// Bytes per token and tokens per medium of one pool, learned from `usage.prompt_tokens`.
#[derive(Debug, Clone)]
pub(crate) struct PromptModel {
    bytes: f64,
    tokens: f64,
    media_tokens: f64,
}

impl PromptModel {
    pub(crate) fn new(bytes_per_token: f64) -> Self {
        let start = bounded(bytes_per_token, 4.0, BYTES_PER_TOKEN.0, BYTES_PER_TOKEN.1);
        PromptModel { bytes: start * PRIOR_TOKENS, tokens: PRIOR_TOKENS, media_tokens: FIRST_MEDIA_TOKENS }
    }

    /// Text bytes that make one token, on average over tokens.
    pub(crate) fn bytes_per_token(&self) -> f64 {
        bounded(self.bytes / self.tokens, 4.0, BYTES_PER_TOKEN.0, BYTES_PER_TOKEN.1)
    }

    /// Tokens of a prompt with `bytes` of text and `media` images or clips.
    pub(crate) fn tokens(&self, bytes: u64, media: u32) -> f64 {
        bytes as f64 / self.bytes_per_token() + f64::from(media) * self.media_tokens
    }

    /// Learns from an answer's `usage.prompt_tokens`. Prompts with media teach only what a medium costs.
    pub(crate) fn observe(&mut self, bytes: u64, media: u32, prompt_tokens: u64) {
        if prompt_tokens == 0 || (bytes == 0 && media == 0) {
            return;
        }
        let tokens = prompt_tokens as f64;
        if media > 0 {
            let each = (tokens - bytes as f64 / self.bytes_per_token()).max(0.0) / f64::from(media);
            self.media_tokens += (each.min(MEDIA_TOKENS_MAX) - self.media_tokens) * MEDIA_STEP;
            return;
        }
        // One absurd report must not teach an absurd rate for long: a prompt weighs at most a share of the horizon.
        let weight = tokens.min(HORIZON_TOKENS / 16.0);
        let ratio = bounded(bytes as f64 / tokens, 4.0, BYTES_PER_TOKEN.0, BYTES_PER_TOKEN.1);
        let fade =
            if self.tokens + weight > HORIZON_TOKENS { HORIZON_TOKENS / (self.tokens + weight) } else { 1.0 };
        self.bytes = (self.bytes + ratio * weight) * fade;
        self.tokens = (self.tokens + weight) * fade;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_at_the_configured_figure_and_follows_what_engines_report() {
        let mut model = PromptModel::new(4.0);
        assert_eq!(model.tokens(4_000, 0), 1_000.0);
        for _ in 0..200 {
            model.observe(30_000, 0, 10_000);
        }
        assert!((model.bytes_per_token() - 3.0).abs() < 0.02, "{}", model.bytes_per_token());
    }

    #[test]
    fn media_are_learned_apart_from_text() {
        let mut model = PromptModel::new(4.0);
        for _ in 0..200 {
            model.observe(4_000, 2, 1_000 + 2 * 600);
        }
        assert_eq!(model.bytes_per_token(), 4.0, "an image must not change what text costs");
        assert!((model.tokens(4_000, 1) - 1_600.0).abs() < 5.0);
    }

    #[test]
    fn absurd_reports_stay_bounded() {
        let mut model = PromptModel::new(f64::NAN);
        for (bytes, media, tokens) in [(0, 0, u64::MAX), (u64::MAX, 0, 1), (1, 0, u64::MAX), (0, 1, u64::MAX)]
        {
            model.observe(bytes, media, tokens);
            assert!(model.tokens(u64::MAX, u32::MAX).is_finite());
            assert!((0.0625..=32.0).contains(&model.bytes_per_token()));
        }
    }
}
