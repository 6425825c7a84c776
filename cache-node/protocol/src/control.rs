//! The JSON of the control API between proxy and node. Ids are 32 hex digits; chain points 16 hex digits each, since
//! JSON numbers lose bits above 2^53 in many readers.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{LeaseId, Tag};

mod pins;
mod quotas;

pub use pins::{PinAnswer, PinRequest, PinnedChunks, PinsAnswer, ReleaseAnswer, ReleaseRequest};
pub use quotas::{QuotaAnswer, QuotaRequest, QuotasAnswer, TENANT_BYTES_MAX, TenantQuota};

/// The most points of a prompt chain in one request: 32 MiB of prompt in runs of 512 bytes.
pub const CHAIN_LEN_MAX: usize = 65_536;

/// The most bytes of a control request's body. A chain of [`CHAIN_LEN_MAX`] points takes 1.25 MB.
pub const BODY_BYTES_MAX: usize = 2 << 20;

/// Asks a node to make the beginning of a prompt ready for an engine (`POST /v1/stage`), or only what that would give
/// (`POST /v1/lookup`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// The request's name; the same rides in `kv_transfer_params.larder.tag`. The node draws one if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_tag")]
    pub tag: Option<Tag>,
    /// The prompt chain, one point a whole run.
    pub chain: Vec<ChainPoint>,
    /// Bytes of canonical prompt covered by one run.
    pub run_bytes: u32,
    /// Bytes of the whole canonical prompt.
    pub prompt_bytes: u64,
    /// The engine, as its plugin's `endpoint` or `engine` names it. May be left out where the node serves only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// How long the proxy will wait, in milliseconds; the node answers with what it verified by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u32>,
    /// The most bytes to stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Whose request it is: what the engine stores under its tag counts against this tenant's quota.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

/// What was staged, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageAnswer {
    /// The lease pushed to the engine before this answer was sent; none where nothing was staged, and for `lookup`.
    #[serde(with = "hex_lease")]
    pub lease: Option<LeaseId>,
    /// The request's name, drawn by the node if the request had none.
    #[serde(default, with = "hex_tag")]
    pub tag: Option<Tag>,
    /// Tokens of the prompt whose KV is ready.
    pub tokens_ready: u64,
    /// Chunks they lie in.
    pub chunks: u64,
    /// Bytes of these chunks.
    pub bytes: u64,
    /// Why this much and not more.
    pub reason: StageReason,
}

/// Why a stage call gave what it gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageReason {
    /// Everything the recipe names was held and is ready.
    Staged,
    /// A beginning of what the recipe names: the rest is not held.
    Partial,
    /// A beginning: the deadline, a limit, or a failed checksum cut the rest.
    Cut,
    /// No session of this node answers to that engine name.
    NoEngine,
    /// Several do (data-parallel ranks behind one URL); which will get the request is not known.
    AmbiguousEngine,
    /// The session has not registered completely.
    NotReady,
    /// Nothing is known about this beginning of a prompt chain.
    NoRecipe,
    /// The recipe's first chunk is not held.
    NotHeld,
    /// The first chunk failed its checksum and is quarantined.
    Corrupt,
    /// Leases, jobs or pinned bytes are at their limit.
    Busy,
    /// Nothing was verified within the deadline.
    Deadline,
    /// A reason this build does not know.
    #[serde(other)]
    Unknown,
}

impl StageReason {
    /// The word as it travels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Partial => "partial",
            Self::Cut => "cut",
            Self::NoEngine => "no_engine",
            Self::AmbiguousEngine => "ambiguous_engine",
            Self::NotReady => "not_ready",
            Self::NoRecipe => "no_recipe",
            Self::NotHeld => "not_held",
            Self::Corrupt => "corrupt",
            Self::Busy => "busy",
            Self::Deadline => "deadline",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for StageReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The body of every answer that is not 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// What was wrong, with which value, and what to do.
    pub error: String,
}

/// One point of a prompt chain: 16 lower-case hex digits in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainPoint(pub u64);

impl Serialize for ChainPoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for ChainPoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl serde::de::Visitor<'_> for Hex {
            type Value = ChainPoint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a chain point of 16 hex digits")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ChainPoint, E> {
                let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                let point = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
                point.map(ChainPoint).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Hex)
    }
}

macro_rules! hex_id {
    ($module:ident, $id:ident) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer};

            use crate::id::$id;

            pub(in crate::control) fn serialize<S: Serializer>(
                id: &Option<$id>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                match id {
                    Some(id) => serializer.collect_str(id),
                    None => serializer.serialize_none(),
                }
            }

            pub(in crate::control) fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<Option<$id>, D::Error> {
                let text = Option::<String>::deserialize(deserializer)?;
                let read = |text: String| {
                    $id::from_hex(&text)
                        .ok_or_else(|| serde::de::Error::custom("expected an id of 32 hex digits"))
                };
                text.map(read).transpose()
            }
        }
    };
}
hex_id!(hex_tag, Tag);
hex_id!(hex_lease, LeaseId);
hex_id!(hex_pin, PinId);

#[cfg(test)]
mod tests;
