//! Pins, and the release of what was given out.

use serde::{Deserialize, Serialize};

use super::{ChainPoint, StageReason, hex_lease, hex_pin};
use crate::id::{LeaseId, PinId};

/// Asks a node to keep the beginning of a prompt in host memory for a while (`POST /v1/pins`). Only what is held there
/// now is kept: a prompt is pinned after its engine has stored it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The prompt chain, one point a whole run.
    pub chain: Vec<ChainPoint>,
    /// Bytes of canonical prompt covered by one run.
    pub run_bytes: u32,
    /// Bytes of the whole canonical prompt.
    pub prompt_bytes: u64,
    /// An engine of the model, as its plugin's `endpoint` or `engine` names it; it says which namespace is meant. May be
    /// left out where the node serves only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// How long to keep it, in milliseconds; at most as long as the node allows (`pins.ttl_max`).
    pub ttl_ms: u64,
    /// The most bytes to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// What is kept, answering a [`PinRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinAnswer {
    /// The pin; none where nothing is kept.
    #[serde(default, with = "hex_pin")]
    pub pin: Option<PinId>,
    /// Tokens of the prompt whose KV is kept.
    pub tokens: u64,
    /// Chunks they lie in.
    pub chunks: u64,
    /// Bytes of memory these take.
    pub bytes: u64,
    /// Until the pin ends, in milliseconds; 0 where there is none.
    pub expires_ms: u64,
    /// Why this much and not more.
    pub reason: StageReason,
}

/// One pin, in the answer to `GET /v1/pins`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedChunks {
    /// The pin.
    #[serde(with = "hex_pin")]
    pub pin: Option<PinId>,
    /// Its namespace, in hex.
    pub namespace: String,
    /// Its chunks.
    pub chunks: u64,
    /// Bytes of memory these take.
    pub bytes: u64,
    /// Until it ends, in milliseconds.
    pub expires_ms: u64,
}

/// The answer to `GET /v1/pins`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinsAnswer {
    /// Every pin, in the order of ids.
    pub pins: Vec<PinnedChunks>,
    /// Bytes that they keep; what several keep counts once.
    pub bytes: u64,
    /// Bytes that they may keep.
    pub max_bytes: u64,
    /// Bytes that those of one namespace may keep.
    pub namespace_max_bytes: u64,
}

/// Gives a lease or a pin back before its time (`POST /v1/release`): exactly one is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// A staged lease. If its engine has begun to load, it ends with that load.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_lease")]
    pub lease: Option<LeaseId>,
    /// A pin.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_pin")]
    pub pin: Option<PinId>,
}

/// Answers a [`ReleaseRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseAnswer {
    /// Whether there was one of that name; it may have ended before.
    pub released: bool,
}
