//! `POST /v1/explain`: where a request would go now, and what every choice would cost. Nothing is forwarded, and
//! nothing is counted as load or remembered.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Method};
use larder_routing::{Candidate, EndpointState, Refused};
use serde_json::{Value, json};

use crate::gateway::error::GatewayError;
use crate::gateway::prompt::Prompt;
use crate::openai::{self, Call};
use crate::pool::{Pool, Wanted};

/// What the request to be explained is a call of, where nothing says it.
const PATH: &str = "/v1/chat/completions";

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum NoExplanation {
    /// The path is not one with a prompt.
    #[error("`{0}` takes no prompt, so it goes to the least loaded endpoint; name another with ?path=")]
    Path(String),
    /// The gateway would refuse the request.
    #[error(transparent)]
    Refused(#[from] GatewayError),
}

/// Explains a request with this `query` (`path=/v1/completions`; chat if absent), these headers and this body.
///
/// Under the policies `larder` and `min_ttft` the first candidate is chosen (by lot among equals); the others do not
/// look at costs.
///
/// # Errors
/// See [`NoExplanation`].
pub fn explain(
    pools: &[Arc<Pool>],
    session_header: &HeaderName,
    (query, headers, body): (Option<&str>, &HeaderMap, &[u8]),
) -> Result<Value, NoExplanation> {
    let path = query.into_iter().flat_map(|q| q.split('&')).find_map(|pair| pair.strip_prefix("path="));
    let path = path.map_or_else(|| PATH.to_owned(), |path| path.replace("%2F", "/").replace("%2f", "/"));
    let call @ Call::Prompt(_) = openai::classify(&Method::POST, &path) else {
        return Err(NoExplanation::Path(path));
    };
    let prompt = Prompt::read(pools, call, body);
    let pool = prompt.pool(pools)?;
    let exclude = prompt.model.as_deref().map(|m| pool.not_serving(m)).unwrap_or_default();
    let session = prompt.session(headers, session_header);
    let wanted = Wanted {
        prompt: prompt.chain.as_ref(),
        session,
        streamed: prompt.streamed,
        exclude: &exclude,
        id: "",
    };
    let candidates: Vec<Value> = pool.explain(&wanted).iter().map(candidate).collect();
    Ok(json!({
        "pool": pool.model,
        "policy": pool.policy().as_str(),
        "session": session.is_some(),
        "prompt": prompt.chain.as_ref().map(|chain| json!({
            "elements": chain.elements().len(),
            "run_bytes": chain.run_bytes().get(),
            "bytes": chain.bytes(),
            "media": chain.media(),
        })),
        "no_chain": prompt.why.as_ref().map(ToString::to_string),
        "candidates": candidates,
    }))
}

fn candidate(candidate: &Candidate) -> Value {
    let refused = candidate.refused.as_ref().map(|refused| match refused {
        Refused::State(EndpointState::Unavailable(why)) => why.to_string(),
        Refused::State(EndpointState::Draining) => "draining".to_owned(),
        Refused::State(EndpointState::Available) => "available".to_owned(),
        Refused::Excluded => "does not serve the model".to_owned(),
        Refused::NoRoom => "has as many requests in flight as it may have".to_owned(),
    });
    json!({
        "endpoint": &*candidate.name,
        "refused": refused,
        "matched_tokens": candidate.matched_tokens,
        "uncached_tokens": candidate.uncached_tokens,
        "wait_s": candidate.wait_s,
        "base_s": candidate.base_s,
        "fetch_tokens": candidate.fetch_tokens,
        "fetch_s": candidate.fetch_s,
        "link_wait_s": candidate.link_wait_s,
        "miss_s": candidate.miss_s,
        "full": candidate.full,
        "in_flight": candidate.in_flight,
        "cost_s": candidate.cost_s,
    })
}
