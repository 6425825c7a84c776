//! XXH3-64 with a secret, in the three shapes a chain needs: many equal runs, one link, and text of any length.
//! Source: the XXH3 specification and reference code at <https://github.com/Cyan4973/xxHash>.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_secret, xxh3_128_with_secret};

use crate::secret::SECRET_BYTES;
use crate::{Cpu, Out, RunBytes, Secret};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(test)]
mod tests;

/// Secret, run length and code path: what every hash of a chain depends on.
#[derive(Clone)]
pub(crate) struct RunHasher {
    secret: [u8; SECRET_BYTES],
    run_bytes: RunBytes,
    cpu: Cpu,
    flip_low: u64,
    flip_high: u64,
}

impl RunHasher {
    pub(crate) fn new(secret: &Secret, run_bytes: RunBytes, cpu: Cpu) -> Self {
        let secret = *secret.expose();
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| secret[at + i]));
        // The two words with which XXH3 whitens an input of 9 to 16 bytes.
        let (flip_low, flip_high) = (word(24) ^ word(32), word(40) ^ word(48));
        Self { secret, run_bytes, cpu, flip_low, flip_high }
    }

    pub(crate) fn cpu(&self) -> Cpu {
        self.cpu
    }

    pub(crate) fn run_bytes(&self) -> RunBytes {
        self.run_bytes
    }

    /// Appends the hash of each run of `bytes`, whose length is a multiple of the run length.
    pub(crate) fn runs(&self, bytes: &[u8], out: &mut Vec<u64>) {
        debug_assert!(bytes.len().is_multiple_of(self.run_bytes.get()));
        #[cfg(target_arch = "x86_64")]
        if let Cpu::Avx2(cpu) = self.cpu
            && avx2::runs(cpu, bytes, self.run_bytes.get(), &self.secret, out)
        {
            return;
        }
        out.extend(
            bytes.chunks_exact(self.run_bytes.get()).map(|run| xxh3_64_with_secret(run, &self.secret)),
        );
    }

    /// `xxh3(previous ‖ next)`, both as little-endian words: XXH3's path for 9 to 16 bytes, spelled out so that the
    /// chain of multiplications stays in registers.
    #[inline]
    pub(crate) fn link(&self, previous: u64, next: u64) -> u64 {
        let low = previous ^ self.flip_low;
        let high = next ^ self.flip_high;
        let product = u128::from(low) * u128::from(high);
        let folded = (product as u64) ^ ((product >> 64) as u64);
        let mut hash = 16_u64.wrapping_add(low.swap_bytes()).wrapping_add(high).wrapping_add(folded);
        hash ^= hash >> 37;
        hash = hash.wrapping_mul(0x1656_6791_9E37_79F9);
        hash ^ (hash >> 32)
    }

    /// The hash of bytes of any length.
    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        xxh3_64_with_secret(bytes, &self.secret)
    }

    /// A 128-bit hash, for the key of a cache whose entries are not compared with what they were made from.
    pub(crate) fn hash_wide(&self, bytes: &[u8]) -> u128 {
        xxh3_128_with_secret(bytes, &self.secret)
    }

    /// The same hash as [`hash`](Self::hash), for bytes that arrive in pieces.
    pub(crate) fn stream(&self) -> Stream {
        Stream(Xxh3::with_secret(self.secret))
    }
}

/// A hash under way.
pub(crate) struct Stream(Xxh3);

impl Stream {
    pub(crate) fn finish(&self) -> u64 {
        self.0.digest()
    }
}

impl Out for Stream {
    fn put(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}
