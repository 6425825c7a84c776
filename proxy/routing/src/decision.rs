//! The result of routing: what was chosen, why, and at what expected cost.

use std::sync::Arc;

use crate::EndpointId;

/// A request to place.
#[derive(Debug, Clone, Copy)]
pub struct RouteRequest<'a> {
    /// The prompt chain: element *i* stands for the first *i + 1* runs of the prompt. Empty: no affinity.
    /// Elements beyond [`MAX_CHAIN`](crate::MAX_CHAIN) are ignored.
    pub chain: &'a [u64],
    /// Prompt bytes that one element stands for. The same for all requests of a fleet; 0 means no affinity.
    pub run_bytes: u32,
    /// Text bytes of the whole prompt, without media payloads; at least `chain.len() * run_bytes` is assumed.
    pub prompt_bytes: u64,
    /// Images and audio clips in the prompt; each counts as tokens learned from answers.
    pub media: u32,
    /// The session the client named, hashed. Only `session_hash` looks at it.
    pub session: Option<u64>,
    /// Whether the answer is streamed, so that its first token will be seen.
    pub streamed: bool,
    /// Endpoints that already failed this request.
    pub exclude: &'a [EndpointId],
}

/// Names a request in flight: give it back with [`Fleet::finish`](crate::Fleet::finish), whatever happens, or its
/// load stays for ever.
#[derive(Debug, PartialEq, Eq, Hash)]
#[must_use = "a ticket that is not given to `Fleet::finish` leaks its load"]
pub struct Ticket {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// Why an endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No other endpoint could take the request.
    OnlyCandidate,
    /// It holds as much of the prompt as any candidate.
    PrefixHit,
    /// Another holds more of the prompt, but waiting for it costs more than computing it here.
    Spill,
    /// Nobody holds anything of the prompt: placed by load.
    Cold,
    /// The request has no chain: placed by load.
    NoAffinity,
    /// By hash of the session the client named.
    Session,
    /// By hash of the whole prompt, since the client named no session.
    PromptHash,
    /// It was its turn.
    RoundRobin,
    /// It was held for another endpoint, and this one was idle first.
    Stolen,
    /// By load, while the policy only says what it would do.
    Shadow,
}

impl Reason {
    /// Every reason, for tables of metrics.
    pub const ALL: [Reason; 10] = [
        Reason::OnlyCandidate,
        Reason::PrefixHit,
        Reason::Spill,
        Reason::Cold,
        Reason::NoAffinity,
        Reason::Session,
        Reason::PromptHash,
        Reason::RoundRobin,
        Reason::Stolen,
        Reason::Shadow,
    ];

    /// The label used in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Reason::OnlyCandidate => "only_candidate",
            Reason::PrefixHit => "prefix_hit",
            Reason::Spill => "spill",
            Reason::Cold => "cold",
            Reason::NoAffinity => "no_affinity",
            Reason::Session => "session",
            Reason::PromptHash => "prompt_hash",
            Reason::RoundRobin => "round_robin",
            Reason::Stolen => "stolen",
            Reason::Shadow => "shadow",
        }
    }
}

/// The best endpoint that was not chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Runner {
    /// Its id.
    pub endpoint: EndpointId,
    /// Its name.
    pub name: Arc<str>,
    /// Its cost, in the policy's seconds.
    pub cost_s: f64,
    /// Prompt tokens expected in its cache.
    pub matched_tokens: u64,
}

/// Where a request goes. Every number is finite.
#[derive(Debug)]
#[must_use = "a decision carries the ticket that releases its load"]
pub struct Decision {
    /// To be given back when the request ends.
    pub ticket: Ticket,
    /// The chosen endpoint.
    pub endpoint: EndpointId,
    /// Its name.
    pub name: Arc<str>,
    /// Why.
    pub reason: Reason,
    /// Prompt tokens expected in its cache.
    pub matched_tokens: u64,
    /// Tokens the prompt is expected to have.
    pub prompt_tokens: u64,
    /// Seconds it was held back before this decision was final.
    pub held_s: f64,
    /// Seconds until the engine can turn to it.
    pub wait_s: f64,
    /// Prompt tokens, behind the matched ones, that are to be fetched from a warehouse.
    pub fetch_tokens: u64,
    /// Seconds that takes, once the link turns to it.
    pub fetch_s: f64,
    /// Prompt tokens, behind the matched ones, that the warehouse is believed to have, worth fetching or not.
    pub warehoused_tokens: u64,
    /// Seconds until the link can turn to it.
    pub link_wait_s: f64,
    /// Seconds of prefill for what is neither cached nor fetched.
    pub miss_s: f64,
    /// Its cost, in the policy's seconds.
    pub cost_s: f64,
    /// The shadow price X at the chosen endpoint when it was chosen (informative under policies that do not use it).
    pub price: f64,
    /// The best of the others, if there were any.
    pub runner_up: Option<Runner>,
    /// How many endpoints could have taken it.
    pub candidates: usize,
    /// In the shadow: what the policy would have done.
    pub would: Option<Would>,
}

/// What a policy would have done.
#[derive(Debug, Clone, PartialEq)]
pub struct Would {
    /// Where it would have sent the request.
    pub name: Arc<str>,
    /// Why.
    pub reason: Reason,
    /// Its cost, in the policy's seconds.
    pub cost_s: f64,
    /// Prompt tokens expected in its cache.
    pub matched_tokens: u64,
}

/// No endpoint can take a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no endpoint can take the request: of {known} known, {draining} draining, {excluded} already tried, \
     {}{unavailable} unavailable{}", with_all(*.full), .example.as_deref().map(|why| format!(" ({why})")).unwrap_or_default()
)]
pub struct NoEndpoint {
    /// Endpoints of the pool.
    pub known: usize,
    /// Of these, draining.
    pub draining: usize,
    /// Of these, unavailable.
    pub unavailable: usize,
    /// Of these, available but named in [`RouteRequest::exclude`].
    pub excluded: usize,
    /// Of these, available but without room for one more.
    pub full: usize,
    /// One of the unavailable, with its reason.
    pub example: Option<String>,
}

fn with_all(full: usize) -> String {
    if full == 0 { String::new() } else { format!("{full} with all the requests that they may have, ") }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer came.
    Completed {
        /// What the engine reported, if it did.
        usage: Option<Usage>,
    },
    /// It failed before anything of an answer came: what it was to leave in the engine's cache is not there.
    FailedBeforeFirstByte,
    /// The client or the engine broke off. Its prompt is taken for computed if a first token was seen.
    Aborted,
}

/// The engine's count of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// `usage.prompt_tokens`.
    pub prompt_tokens: u64,
    /// `usage.prompt_tokens_details.cached_tokens`, if reported.
    pub cached_tokens: Option<u64>,
}
