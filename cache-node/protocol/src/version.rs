//! Versions of the engine port. They only grow: a version that was released is spoken as it was. A field that the other
//! side can do without joins a released version as an optional one, since unknown fields are ignored and absent ones
//! are none; anything else is a new version.

/// A version of the engine port, with what it changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Version {
    /// The first: sessions, host slab, leases, recipes from tags.
    V1 = 1,
    /// `pending`: the answer to a lookup of chunks that are coming up from a slower tier.
    V2 = 2,
    /// `attach`, `fetch`, `save`: the node itself moves KV between its memory and an engine's pages in a GPU.
    V3 = 3,
}

impl Version {
    /// All that this build speaks, oldest first.
    pub const ALL: [Version; 3] = [Version::V1, Version::V2, Version::V3];

    /// The number that travels in `hello` and `welcome`.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The highest version that both sides speak, given what the other offered.
    pub fn highest_common(offered: &[u16]) -> Option<Self> {
        Self::ALL.into_iter().rev().find(|version| offered.contains(&version.number()))
    }
}
