//! XXH3-64 of runs of one fixed length, with AVX2 found at run time.
//!
//! `xxhash-rust` chooses its instruction set when it is compiled, so that a build for any x86-64 machine hashes with
//! SSE2 at about half the speed. Fixed lengths also remove every branch on the length. Bit-identical to the crate's
//! `xxh3_64_with_secret`, which the tests assert.
#![expect(unsafe_code, reason = "vector loads, and calls of functions that need AVX2")]

use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_mul_epu32, _mm256_set1_epi32, _mm256_setr_epi64x,
    _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
};

use crate::cpu::Avx2;
use crate::secret::SECRET_BYTES;

const PRIME32_1: u64 = 0x9E37_79B1;
const PRIME32_2: u64 = 0x85EB_CA77;
const PRIME32_3: u64 = 0xC2B2_AE3D;
const PRIME64_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME64_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME64_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME64_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME64_5: u64 = 0x27D4_EB2F_1656_67C5;

const STRIPE: usize = 64;
/// Stripes until the accumulators are scrambled: `(secret length - 64) / 8`.
const BLOCK_STRIPES: usize = (SECRET_BYTES - STRIPE) / 8;
/// Where the key of the last stripe starts.
const LAST_KEY: usize = SECRET_BYTES - STRIPE - 7;
/// Where the key of the final merge starts.
const MERGE_KEY: usize = 11;

/// Appends the hash of each run; false if there is no kernel for this length (shorter than 256, where XXH3 takes
/// other paths that are not vectorised anyway), and then nothing was appended.
pub(super) fn runs(
    _cpu: Avx2,
    bytes: &[u8],
    run_bytes: usize,
    secret: &[u8; SECRET_BYTES],
    out: &mut Vec<u64>,
) -> bool {
    let kernel = match run_bytes {
        256 => fixed::<256>,
        512 => fixed::<512>,
        1024 => fixed::<1024>,
        2048 => fixed::<2048>,
        4096 => fixed::<4096>,
        _ => return false,
    };
    // SAFETY: an `Avx2` exists only on a CPU that has the features the kernels are compiled with.
    unsafe { kernel(bytes, secret, out) };
    true
}

#[target_feature(enable = "avx2,bmi1,bmi2")]
fn fixed<const RUN: usize>(bytes: &[u8], secret: &[u8; SECRET_BYTES], out: &mut Vec<u64>) {
    let (runs, rest) = bytes.as_chunks::<RUN>();
    debug_assert!(rest.is_empty());
    out.reserve(runs.len());
    for run in runs {
        out.push(long::<RUN>(run, secret));
    }
}

/// XXH3's path for inputs over 240 bytes.
#[target_feature(enable = "avx2,bmi1,bmi2")]
#[inline]
fn long<const RUN: usize>(run: &[u8; RUN], secret: &[u8; SECRET_BYTES]) -> u64 {
    let word = |value: u64| value.cast_signed();
    let mut low = _mm256_setr_epi64x(word(PRIME32_3), word(PRIME64_1), word(PRIME64_2), word(PRIME64_3));
    let mut high = _mm256_setr_epi64x(word(PRIME64_4), word(PRIME32_2), word(PRIME64_5), word(PRIME32_1));
    let (stripes, _) = run.as_chunks::<STRIPE>();
    let last = stripes.len() - 1;
    for (index, stripe) in stripes[..last].iter().enumerate() {
        let in_block = index % BLOCK_STRIPES;
        (low, high) = accumulate(low, high, stripe, key(secret, in_block * 8));
        if in_block == BLOCK_STRIPES - 1 {
            (low, high) = scramble(low, high, key(secret, SECRET_BYTES - STRIPE));
        }
    }
    (low, high) = accumulate(low, high, &stripes[last], key(secret, LAST_KEY));
    merge(low, high, key(secret, MERGE_KEY), RUN as u64)
}

#[inline(always)]
fn key(secret: &[u8; SECRET_BYTES], at: usize) -> &[u8; STRIPE] {
    secret[at..].first_chunk().expect("every offset used is at most SECRET_BYTES - STRIPE")
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; STRIPE]) -> (__m256i, __m256i) {
    let at: *const __m256i = bytes.as_ptr().cast();
    // SAFETY: the array has 64 bytes, two unaligned vectors of 32.
    unsafe { (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn accumulate(low: __m256i, high: __m256i, data: &[u8; STRIPE], key: &[u8; STRIPE]) -> (__m256i, __m256i) {
    let ((data_low, data_high), (key_low, key_high)) = (load(data), load(key));
    let lane = |acc, data, key| {
        let mixed = _mm256_xor_si256(data, key);
        let product = _mm256_mul_epu32(mixed, _mm256_srli_epi64::<32>(mixed));
        let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(data);
        _mm256_add_epi64(_mm256_add_epi64(acc, swapped), product)
    };
    (lane(low, data_low, key_low), lane(high, data_high, key_high))
}

#[target_feature(enable = "avx2")]
#[inline]
fn scramble(low: __m256i, high: __m256i, key: &[u8; STRIPE]) -> (__m256i, __m256i) {
    let (key_low, key_high) = load(key);
    let prime = _mm256_set1_epi32((PRIME32_1 as u32).cast_signed());
    let lane = |acc, key| {
        let mixed = _mm256_xor_si256(_mm256_xor_si256(acc, _mm256_srli_epi64::<47>(acc)), key);
        let product_low = _mm256_mul_epu32(mixed, prime);
        let product_high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(mixed), prime);
        _mm256_add_epi64(product_low, _mm256_slli_epi64::<32>(product_high))
    };
    (lane(low, key_low), lane(high, key_high))
}

#[target_feature(enable = "avx2")]
#[inline]
fn merge(low: __m256i, high: __m256i, key: &[u8; STRIPE], len: u64) -> u64 {
    let mut acc = [0_u64; 8];
    let at: *mut __m256i = acc.as_mut_ptr().cast();
    let (key_low, key_high) = load(key);
    // SAFETY: the array has 64 bytes, two unaligned vectors of 32.
    unsafe {
        _mm256_storeu_si256(at, _mm256_xor_si256(low, key_low));
        _mm256_storeu_si256(at.add(1), _mm256_xor_si256(high, key_high));
    }
    let mut hash = len.wrapping_mul(PRIME64_1);
    for pair in acc.as_chunks::<2>().0 {
        let product = u128::from(pair[0]) * u128::from(pair[1]);
        hash = hash.wrapping_add((product as u64) ^ ((product >> 64) as u64));
    }
    hash ^= hash >> 37;
    hash = hash.wrapping_mul(0x1656_6791_9E37_79F9);
    hash ^ (hash >> 32)
}
