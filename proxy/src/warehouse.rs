//! Asks the cache node beside the chosen engine to make the prompt's beginning ready before the request goes out.
//!
//! What it is believed to hold was weighed in the decision already (`larder-routing`), and its answer corrects that.
//! What it is asked for is a hint: too slow, gone or wrong, the request goes out at once and the engine computes. The
//! node also learns from each call which prompt chain a request tag stands for; with the block keys that the engine's
//! plugin reports under the same tag that makes a *recipe*, by which a later prompt is found before any engine has
//! tokenised it. So the node is told of every prompt, and waited for only when the engine lacks something.

use std::sync::Arc;
use std::time::Duration;

use larder_client::Client;
use larder_identity::PromptChain;
use larder_protocol::control::{ChainPoint, StageAnswer, StageReason, StageRequest};
use larder_protocol::{LeaseId, Tag};
use larder_routing::LinkSpec;
use prometheus::IntCounter;
use serde_json::{Value, json};

use crate::metrics::Metrics;

/// When a node is asked, and how long it is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest wait for the node before the request goes out without it.
    pub deadline: Duration,
    /// Missing tokens below which waiting does not pay.
    pub min_tokens: u64,
    /// KV tokens a second that an endpoint copies from its node at most.
    pub link_tokens_per_s: u64,
}

/// The cache node beside one endpoint.
pub struct CacheNode {
    client: Arc<Client>,
    /// Its address: endpoints that name one node read one store over one link.
    name: Arc<str>,
    /// The endpoint's URL, under which the engine's plugin has registered.
    engine: String,
    limits: Limits,
    counters: Counters,
}

/// Calls by how they ended.
struct Counters {
    staged: IntCounter,
    nothing: IntCounter,
    told: IntCounter,
    failed: IntCounter,
}

/// What a node made ready.
#[derive(Debug)]
pub struct Staged {
    tag: Tag,
    lease: Option<LeaseId>,
    /// Tokens of the prompt whose KV is ready.
    pub tokens: u64,
    /// Whether the node has no more of the prompt than that, as far as one can tell; not where it was only told of it.
    pub all: bool,
}

impl Staged {
    /// What the engine's plugin is told, as `kv_transfer_params.larder`.
    pub fn params(&self) -> Value {
        match self.lease {
            Some(lease) => json!({"tag": self.tag.to_string(), "lease": lease.to_string()}),
            None => json!({"tag": self.tag.to_string()}),
        }
    }
}

impl CacheNode {
    /// The node at the address `name` that `client` asks, beside the endpoint `endpoint` of `pool`, whose URL is `engine`.
    pub fn new(
        (client, name): (Client, String),
        engine: String,
        limits: Limits,
        metrics: &Metrics,
        labels: (&str, &str),
    ) -> Self {
        let counter = |result| metrics.stage_calls(labels.0, labels.1, result);
        let counters = Counters {
            staged: counter("staged"),
            nothing: counter("nothing"),
            told: counter("told"),
            failed: counter("failed"),
        };
        Self { client: Arc::new(client), name: name.into(), engine, limits, counters }
    }

    /// What the decision is told of it.
    pub fn link(&self) -> LinkSpec {
        LinkSpec {
            warehouse: Arc::clone(&self.name),
            link: Arc::clone(&self.name),
            tokens_per_s: self.limits.link_tokens_per_s as f64,
        }
    }

    /// Tells the node of a prompt, of which the engine is expected to lack `missing_tokens`, and waits for what it
    /// can give if that is worth the wait. What the engine stores of it counts as `tenant`'s.
    pub async fn prepare(&self, prompt: &PromptChain, missing_tokens: u64, tenant: Option<&str>) -> Staged {
        let tag = Tag(rand::random());
        let wait = missing_tokens >= self.limits.min_tokens;
        let request = StageRequest {
            tag: Some(tag),
            chain: prompt.elements().iter().copied().map(ChainPoint).collect(),
            run_bytes: u32::try_from(prompt.run_bytes().get()).unwrap_or(u32::MAX),
            prompt_bytes: prompt.bytes(),
            engine: Some(self.engine.clone()),
            deadline_ms: None,
            // Told only for the recipe's sake: nothing is to be pinned for an engine that has it.
            max_bytes: (!wait).then_some(0),
            tenant: tenant.map(str::to_owned),
        };
        let nothing = Staged { tag, lease: None, tokens: 0, all: false };
        if !wait {
            self.counters.told.inc();
            let (client, deadline) = (Arc::clone(&self.client), self.limits.deadline);
            tokio::spawn(async move { client.stage(&request, deadline).await.map(drop) });
            return nothing;
        }
        match self.client.stage(&request, self.limits.deadline).await {
            Ok(StageAnswer { lease: Some(lease), tokens_ready, reason, .. }) => {
                self.counters.staged.inc();
                Staged { tag, lease: Some(lease), tokens: tokens_ready, all: is_all(reason) }
            }
            Ok(StageAnswer { reason, .. }) => {
                self.counters.nothing.inc();
                tracing::debug!(engine = self.engine, %reason, "nothing staged");
                Staged { all: is_all(reason), ..nothing }
            }
            Err(error) => {
                self.counters.failed.inc();
                tracing::debug!(engine = self.engine, %error, "cache node not asked, or without an answer");
                // Whatever it holds cannot be had: a prompt believed to be there would go round its holder for nothing.
                Staged { all: true, ..nothing }
            }
        }
    }
}

/// Whether an answer with this reason named all that the node has of the prompt. A limit, or an engine that is not
/// registered, says nothing of that.
fn is_all(reason: StageReason) -> bool {
    match reason {
        StageReason::Staged
        | StageReason::Partial
        | StageReason::NoRecipe
        | StageReason::NotHeld
        | StageReason::Corrupt => true,
        StageReason::Cut
        | StageReason::NoEngine
        | StageReason::AmbiguousEngine
        | StageReason::NotReady
        | StageReason::Busy
        | StageReason::Deadline
        | StageReason::Unknown => false,
    }
}
