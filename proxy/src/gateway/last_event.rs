//! The event that ends a broken stream, in the form in which the clients of each API look for errors.

use larder_identity::Api;
use memchr::memmem;
use serde_json::json;

/// How errors are told within a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `data: {"error": {...}}`: OpenAI's chat and completions, and what is passed through.
    #[default]
    OpenAi,
    /// An event `error` with a number in its order: OpenAI's responses
    /// (<https://platform.openai.com/docs/api-reference/responses-streaming/error>).
    Responses,
    /// An event `error` with an object in it: Anthropic's messages
    /// (<https://docs.anthropic.com/en/docs/build-with-claude/streaming#error-events>).
    Anthropic,
}

impl Form {
    /// That of a call.
    pub fn of(api: Option<Api>) -> Self {
        match api {
            Some(Api::Responses) => Self::Responses,
            Some(Api::Messages) => Self::Anthropic,
            _ => Self::OpenAi,
        }
    }

    /// The event; `tail` is the end of the stream so far.
    pub fn event(self, message: &str, code: &str, tail: &[u8]) -> String {
        match self {
            Self::OpenAi => {
                let error = json!({"message": message, "type": "server_error", "param": null, "code": code});
                format!("data: {}\n\n", json!({"error": error}))
            }
            Self::Responses => {
                let event = json!({
                    "type": "error",
                    "code": code,
                    "message": message,
                    "param": null,
                    "sequence_number": next_number(tail),
                });
                format!("event: error\ndata: {event}\n\n")
            }
            Self::Anthropic => {
                let error = json!({"type": "api_error", "message": message, "code": code});
                format!("event: error\ndata: {}\n\n", json!({"type": "error", "error": error}))
            }
        }
    }
}

/// The number after that of the last event; 0 where none has one.
fn next_number(tail: &[u8]) -> u64 {
    // Inside a JSON string its quotes would be escaped, so generated text cannot imitate it.
    const KEY: &[u8] = b"\"sequence_number\":";
    let Some(at) = memmem::rfind(tail, KEY) else { return 0 };
    let digits = tail[at + KEY.len()..].trim_ascii_start();
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    let number = std::str::from_utf8(&digits[..end]).ok().and_then(|digits| digits.parse::<u64>().ok());
    number.map_or(0, |number| number.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_goes_on() {
        let number = |tail: &str| next_number(tail.as_bytes());
        assert_eq!(number(""), 0);
        assert_eq!(number("data: {\"sequence_number\":7}\n\ndata: {\"sequence_number\": 8,\"x\":1}\n\n"), 9);
        assert_eq!(number("{\"sequence_number\":x"), 0);
        assert_eq!(number("{\"sequence_number\":18446744073709551615}"), u64::MAX);
        assert_eq!(number("{\"t\":\"\\\"sequence_number\\\":5\"}"), 0);
    }

    #[test]
    fn each_api_has_its_form() {
        let of = |api| Form::of(api).event("it \"broke\"", "engine_lost", b"");
        assert!(of(None).starts_with("data: {\"error\":{"));
        assert_eq!(of(Some(Api::Chat)), of(Some(Api::Completions)));
        for (api, path) in [(Api::Responses, "/message"), (Api::Messages, "/error/message")] {
            let event = of(Some(api));
            let data = event.strip_prefix("event: error\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_eq!(
                (&data["type"], data.pointer(path).unwrap()),
                (&"error".into(), &"it \"broke\"".into())
            );
        }
    }
}
