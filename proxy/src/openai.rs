//! What kind of call a request is, by method and path.

use http::Method;
use larder_identity::Api;

/// A call as the gateway treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A prompt: routed by its prefix.
    Prompt(Api),
    /// `GET /v1/models`: answered by the gateway, for all pools.
    Models,
    /// A path of the API with a method it does not have.
    WrongMethod {
        /// The path.
        path: &'static str,
        /// The method it has.
        allowed: &'static str,
    },
    /// Anything else: passed through to the least loaded endpoint, and counted as load.
    Other,
}

/// Tells the kind of a call.
pub fn classify(method: &Method, path: &str) -> Call {
    let prompt = |path, api| {
        if method == Method::POST { Call::Prompt(api) } else { Call::WrongMethod { path, allowed: "POST" } }
    };
    let post = *method == Method::POST;
    match path {
        "/v1/chat/completions" => prompt("/v1/chat/completions", Api::Chat),
        "/v1/completions" => prompt("/v1/completions", Api::Completions),
        // What else there is under these paths is the engines' business.
        "/v1/messages" if post => Call::Prompt(Api::Messages),
        "/v1/responses" if post => Call::Prompt(Api::Responses),
        "/v1/embeddings" if post => Call::Prompt(Api::Embeddings),
        "/v1/models" if method == Method::GET || method == Method::HEAD => Call::Models,
        "/v1/models" => Call::WrongMethod { path: "/v1/models", allowed: "GET" },
        _ => Call::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        assert_eq!(classify(&Method::POST, "/v1/chat/completions"), Call::Prompt(Api::Chat));
        assert_eq!(classify(&Method::POST, "/v1/completions"), Call::Prompt(Api::Completions));
        assert_eq!(classify(&Method::GET, "/v1/models"), Call::Models);
        assert!(matches!(
            classify(&Method::GET, "/v1/completions"),
            Call::WrongMethod { allowed: "POST", .. }
        ));
        assert_eq!(classify(&Method::POST, "/v1/embeddings"), Call::Prompt(Api::Embeddings));
        assert_eq!(classify(&Method::POST, "/v1/messages"), Call::Prompt(Api::Messages));
        assert_eq!(classify(&Method::POST, "/v1/responses"), Call::Prompt(Api::Responses));
        assert_eq!(classify(&Method::GET, "/v1/responses"), Call::Other);
        assert_eq!(classify(&Method::POST, "/v1/messages/count_tokens"), Call::Other);
        assert_eq!(classify(&Method::GET, "/v1/completions/"), Call::Other);
    }
}
