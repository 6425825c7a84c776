//! What a [`ChainHasher`](crate::ChainHasher) is built from.

use crate::{Secret, Simd};

/// Length of a run, in canonical bytes: a power of two from 64 to 4096, 512 by default.
///
/// One chain element per run. A shorter run finds a shared prefix to a finer grain and costs more hashing and more
/// index memory: at about 4 bytes a token, 512 bytes are 128 tokens. All proxies of a fleet must agree on it.
/// Powers of two, because every one of them has a hash kernel of its own and more choice buys nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunBytes(usize);

impl RunBytes {
    /// Shortest run, in bytes.
    pub const MIN: usize = 64;
    /// Longest run, in bytes.
    pub const MAX: usize = 4096;

    /// The length in bytes.
    #[must_use]
    pub fn get(self) -> usize {
        self.0
    }
}

impl Default for RunBytes {
    fn default() -> Self {
        Self(512)
    }
}

impl TryFrom<usize> for RunBytes {
    type Error = InvalidRunBytes;

    fn try_from(bytes: usize) -> Result<Self, InvalidRunBytes> {
        let valid = bytes.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&bytes);
        if valid { Ok(Self(bytes)) } else { Err(InvalidRunBytes { bytes }) }
    }
}

/// A run length that is not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("run length of {bytes} bytes: choose a power of two from 64 to 4096, such as 512")]
pub struct InvalidRunBytes {
    /// The length asked for, in bytes.
    pub bytes: usize,
}

/// Where a pool's chat template renders the tool definitions.
///
/// It must follow the template, or prompts with equal beginnings get different chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ToolsOrder {
    /// Before every message, as most templates do (in or ahead of the system message).
    #[default]
    BeforeSystem,
    /// Inside the first user turn, as the Llama 3 templates do by default: what stands before that turn is shared by
    /// requests with different tools. Without a user turn tools are not part of the chain.
    FirstUserTurn,
}

/// How to build a [`ChainHasher`](crate::ChainHasher); start from [`HasherSettings::new`] and set what differs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HasherSettings {
    /// Keys every hash; the same in the whole fleet.
    pub secret: Secret,
    /// Run length; the same in the whole fleet.
    pub run_bytes: RunBytes,
    /// Follows the chat template of the pool.
    pub tools_order: ToolsOrder,
    /// Code path; changes speed only.
    pub simd: Simd,
}

impl HasherSettings {
    /// The defaults around a secret.
    #[must_use]
    pub fn new(secret: Secret) -> Self {
        Self {
            secret,
            run_bytes: RunBytes::default(),
            tools_order: ToolsOrder::default(),
            simd: Simd::default(),
        }
    }
}
