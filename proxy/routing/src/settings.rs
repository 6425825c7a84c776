//! What the caller configures.

use std::fmt;
use std::str::FromStr;

/// How a pool chooses an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PolicyKind {
    /// Time to first token plus the shadow price of what the choice takes from others (the product's policy).
    #[default]
    Larder,
    /// Time to first token alone: the same estimates, with a price of 1.
    MinTtft,
    /// Rendezvous hash of the session: needs no state, so any number of proxies agree.
    SessionHash,
    /// One after the other.
    RoundRobin,
}

impl PolicyKind {
    /// Every policy, in the order in which messages list them.
    pub const ALL: [PolicyKind; 4] =
        [PolicyKind::Larder, PolicyKind::MinTtft, PolicyKind::SessionHash, PolicyKind::RoundRobin];

    /// The name used in configuration, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyKind::Larder => "larder",
            PolicyKind::MinTtft => "min_ttft",
            PolicyKind::SessionHash => "session_hash",
            PolicyKind::RoundRobin => "round_robin",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A policy name that is none of [`PolicyKind::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown policy `{given}`: use one of larder, min_ttft, session_hash, round_robin")]
pub struct UnknownPolicy {
    /// What was given, cut to 64 characters.
    pub given: String,
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = PolicyKind::ALL.into_iter().find(|kind| kind.as_str() == name);
        known.ok_or_else(|| UnknownPolicy { given: name.chars().take(64).collect() })
    }
}

/// Settings of one [`Fleet`](crate::Fleet). The defaults are a start that observation corrects.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How endpoints are chosen.
    pub policy: PolicyKind,
    /// Bytes that the index and the chains of requests in flight may take together; beyond it the least
    /// recently used is forgotten. 0 turns prefix affinity off.
    pub index_bytes: usize,
    /// KV capacity of an endpoint that has not reported one, in tokens.
    pub default_kv_tokens: u64,
    /// Prefill speed before any was observed, in tokens per second.
    pub default_prefill_tokens_per_s: f64,
    /// Prompt bytes per token before any was observed.
    pub default_bytes_per_token: f64,
    /// Fewest tokens worth fetching from a warehouse.
    pub min_fetch_tokens: u64,
    /// Time after which a request that is held back goes before later arrivals, in seconds: such requests take up to a
    /// quarter of their endpoint's time first, and nobody is overtaken by those who come more than ten times as much
    /// later (at most 300 s, or the limit itself if it is longer). 0 holds nobody back. Only `larder` holds.
    pub hold_limit_s: f64,
    /// Most requests held back together; one more is refused.
    pub max_held: usize,
    /// Most prompt bytes of requests held back together.
    pub max_held_bytes: u64,
    /// How long an endpoint that came back takes to get its whole share of the load, in seconds; 0: none.
    pub slow_start_s: f64,
    /// Whether engines keep the KV of running requests, which then ages from their end (vLLM, SGLang: yes). Without, all
    /// of it may be evicted at any time and ages from dispatch: the caches of published simulations.
    pub pins_running: bool,
    /// Whether a request waits at an engine until its KV fits beside that of those that run (vLLM, SGLang: yes). Counts
    /// where engines pin what runs and say how much KV they have.
    pub waits_for_memory: bool,
    /// Seed of random ties.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            policy: PolicyKind::default(),
            // About 20 million (element, endpoint) entries of long chats: see `benches/decide.rs`.
            index_bytes: 256 << 20,
            // An 8B model (128 KiB a token) with some 50 GB of an 80 GB GPU left for KV.
            default_kv_tokens: 400_000,
            // A 70B model on 8 GPUs; smaller models are faster and the estimate follows within some requests.
            default_prefill_tokens_per_s: 8_000.0,
            // English text under the common byte-pair vocabularies.
            default_bytes_per_token: 4.0,
            // Less is prefilled in the time of a round trip to the warehouse and a copy.
            min_fetch_tokens: 512,
            // Load balancers in front cut idle connections after 60 to 100 s.
            hold_limit_s: 30.0,
            // Far beyond what anyone would wait for: 2,000 endpoints with two each.
            max_held: 4_096,
            // 5,000 prompts of 100,000 tokens (400 KB each): their bodies wait in the proxy's memory.
            max_held_bytes: 2 << 30,
            // Long enough for an engine's first batches, short enough not to be missed.
            slow_start_s: 10.0,
            pins_running: true,
            waits_for_memory: true,
            seed: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_errors_list_them_all() {
        for kind in PolicyKind::ALL {
            assert_eq!(kind.to_string().parse::<PolicyKind>(), Ok(kind));
        }
        let message = "Larder".parse::<PolicyKind>().unwrap_err().to_string();
        assert!(PolicyKind::ALL.iter().all(|kind| message.contains(kind.as_str())), "{message}");
        assert!(message.contains("`Larder`"));
    }
}
