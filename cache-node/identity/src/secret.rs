//! The deployment secret that keys every hash of a chain.

use std::fmt;

use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Length of an XXH3 secret: the size of the algorithm's own default secret, in bytes.
pub const SECRET_BYTES: usize = 192;

/// The 192-byte XXH3 secret of a deployment.
///
/// All proxies and cache nodes that exchange chains must hold the same one. It keeps clients from crafting
/// collisions or probing for other clients' prefixes; XXH3 is not a cryptographic hash, so a chain is a routing hint
/// and nothing may be shared between tenants on the strength of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Derives the secret from bytes that the operator supplies; they should hold at least 128 random bits.
    ///
    /// Twelve 16-byte words, word `i` being the little-endian XXH3-128 of `passphrase` with seed `i`. Unlike XXH3's
    /// own generator, which starts from a 64-bit seed, this keeps more than 64 bits of the operator's entropy.
    /// The derivation is frozen by a golden test: another one would silently split a fleet during an upgrade.
    #[must_use]
    pub fn derive(passphrase: &[u8]) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        for (seed, word) in (0..).zip(bytes.chunks_exact_mut(16)) {
            word.copy_from_slice(&xxh3_128_with_seed(passphrase, seed).to_le_bytes());
        }
        Self(bytes)
    }

    /// The raw secret, for a second implementation of the chain and for the tests of this one. Never log it.
    #[must_use]
    pub fn expose(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
