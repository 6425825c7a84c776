//! Asks the cache node beside the chosen engine to make the prompt's beginning ready before the request goes out.
//!
//! What it is asked for is a hint: too slow, gone or wrong, the request goes out at once and the engine computes. The
//! node also learns from each call which prompt chain a request tag stands for; with the block keys that the engine's
//! plugin reports under the same tag that makes a *recipe*, by which a later prompt is found before any engine has
//! tokenised it. So the node is told of every prompt, and waited for only when the engine lacks something.

use std::sync::Arc;
use std::time::Duration;

use larder_client::Client;
use larder_identity::PromptChain;
use larder_protocol::control::{ChainPoint, StageAnswer, StageRequest};
use larder_protocol::{LeaseId, Tag};
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
}

/// The cache node beside one endpoint.
pub struct CacheNode {
    client: Arc<Client>,
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
    /// The node that `client` asks, beside the endpoint `endpoint` of `pool`, whose URL is `engine`.
    pub fn new(
        client: Client,
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
        Self { client: Arc::new(client), engine, limits, counters }
    }

    /// Tells the node of a prompt, of which the engine is expected to lack `missing_tokens`, and waits for what it
    /// can give if that is worth the wait.
    pub async fn prepare(&self, prompt: &PromptChain, missing_tokens: u64) -> Staged {
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
        };
        let nothing = Staged { tag, lease: None, tokens: 0 };
        if !wait {
            self.counters.told.inc();
            let (client, deadline) = (Arc::clone(&self.client), self.limits.deadline);
            tokio::spawn(async move { client.stage(&request, deadline).await.map(drop) });
            return nothing;
        }
        match self.client.stage(&request, self.limits.deadline).await {
            Ok(StageAnswer { lease: Some(lease), tokens_ready, .. }) => {
                self.counters.staged.inc();
                Staged { tag, lease: Some(lease), tokens: tokens_ready }
            }
            Ok(StageAnswer { reason, .. }) => {
                self.counters.nothing.inc();
                tracing::debug!(engine = self.engine, %reason, "nothing staged");
                nothing
            }
            Err(error) => {
                self.counters.failed.inc();
                tracing::debug!(engine = self.engine, %error, "cache node not asked, or without an answer");
                nothing
            }
        }
    }
}
