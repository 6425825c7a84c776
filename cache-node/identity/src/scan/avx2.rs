//! The scans with AVX2, 64 bytes at a time.
//!
//! Escapes make no branch: code has one every 50 bytes, and a mispredicted branch each would cost more than the scan.
#![expect(unsafe_code, reason = "vector loads, and calls of functions that need AVX2")]

use std::arch::x86_64::{
    __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_add_epi8, _mm256_cmpeq_epi8, _mm256_loadu_si256,
    _mm256_min_epu8, _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi8,
};

use super::{BAD_LAST, BAD_SHIFT, Masks, Scanned, escaped, nested_by, padded};
use crate::cpu::Avx2;

/// How far ahead of the scan memory is asked for, in bytes. Bodies usually come from memory, and the hardware
/// prefetcher stops at each 4 KiB page.
const PREFETCH_BYTES: usize = 2048;

pub(super) fn string(_cpu: Avx2, body: &[u8], from: usize) -> Scanned {
    // SAFETY: an `Avx2` exists only on a CPU that has the features this function is compiled with.
    unsafe { string_avx2(body, from) }
}

pub(super) fn special(_cpu: Avx2, text: &[u8], from: usize) -> usize {
    // SAFETY: as above.
    unsafe { special_avx2(text, from) }
}

pub(super) fn nested(_cpu: Avx2, body: &[u8], from: usize) -> Option<usize> {
    // SAFETY: as above.
    unsafe { nested_avx2(body, from) }
}

#[derive(Clone, Copy)]
struct Block(__m256i, __m256i);

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn string_avx2(body: &[u8], from: usize) -> Scanned {
    let mut special = None;
    let mut carry = 0;
    let mut least = _mm256_set1_epi8(-1);
    let mut at = from;
    loop {
        let Some(rest) = body.get(at..).filter(|rest| !rest.is_empty()) else { return Scanned::OPEN };
        let block = match rest.first_chunk() {
            Some(whole) => load(whole),
            None => load(&padded(rest)),
        };
        prefetch(rest);
        let (quote, backslash) = (equal(block, b'"'), equal(block, b'\\'));
        let escapes = escaped(backslash, &mut carry);
        let specials = escapes & (equal(block, b'u') | equal(block, b'/'));
        let ends = quote & !escapes;
        if ends | specials != 0 {
            let before_end = ends.wrapping_sub(1) & !ends;
            if special.is_none() && specials & before_end != 0 {
                special = Some(at + (specials & before_end).trailing_zeros() as usize - 1);
            }
            if ends != 0 {
                let end = at + ends.trailing_zeros() as usize;
                let clean = bad(block) & before_end == 0 && none_bad(least);
                return Scanned::new(end, special, clean);
            }
        }
        least = _mm256_min_epu8(least, shifted_least(block));
        at += 64;
        if quote | backslash == 0 {
            (at, least) = plain(body, at, least);
        }
    }
}

/// Steps over whole 128-byte blocks that have neither quote nor backslash.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
#[inline]
fn plain(body: &[u8], mut at: usize, mut least: __m256i) -> (usize, __m256i) {
    while let Some(pair) = body.get(at..).and_then(<[u8]>::first_chunk::<128>) {
        let (halves, _) = pair.as_chunks::<64>();
        let (first, second) = (load(&halves[0]), load(&halves[1]));
        let hits = _mm256_or_si256(quote_or_backslash(first), quote_or_backslash(second));
        if _mm256_movemask_epi8(hits) != 0 {
            break;
        }
        prefetch(&body[at..]);
        prefetch(&body[at + 64..]);
        least = _mm256_min_epu8(least, _mm256_min_epu8(shifted_least(first), shifted_least(second)));
        at += 128;
    }
    (at, least)
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn special_avx2(text: &[u8], from: usize) -> usize {
    let mut carry = 0;
    let mut at = from;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let block = match rest.first_chunk() {
            Some(whole) => load(whole),
            None => load(&padded(rest)),
        };
        let escapes = escaped(equal(block, b'\\'), &mut carry);
        let specials = escapes & (equal(block, b'u') | equal(block, b'/'));
        if specials != 0 {
            return at + specials.trailing_zeros() as usize - 1;
        }
        at += 64;
    }
    text.len()
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn nested_avx2(body: &[u8], from: usize) -> Option<usize> {
    nested_by(body, from, |bytes| {
        let block = load(bytes);
        // `{` and `[`, as `}` and `]`, differ in this bit alone.
        let fold = _mm256_set1_epi8(0x20);
        let folded = Block(_mm256_or_si256(block.0, fold), _mm256_or_si256(block.1, fold));
        Masks {
            quote: equal(block, b'"'),
            backslash: equal(block, b'\\'),
            open: equal(folded, b'{'),
            close: equal(folded, b'}'),
        }
    })
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; 64]) -> Block {
    let at: *const __m256i = bytes.as_ptr().cast();
    // SAFETY: the array has 64 bytes, two unaligned vectors of 32.
    unsafe { Block(_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn prefetch(rest: &[u8]) {
    // A hint: an address that is not mapped is ignored, and nothing is read through it.
    _mm_prefetch::<_MM_HINT_T0>(rest.as_ptr().wrapping_add(PREFETCH_BYTES).cast());
}

#[target_feature(enable = "avx2")]
#[inline]
fn equal(block: Block, byte: u8) -> u64 {
    let wanted = _mm256_set1_epi8(byte.cast_signed());
    bits(Block(_mm256_cmpeq_epi8(block.0, wanted), _mm256_cmpeq_epi8(block.1, wanted)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn quote_or_backslash(block: Block) -> __m256i {
    let (quote, backslash) = (_mm256_set1_epi8(b'"'.cast_signed()), _mm256_set1_epi8(b'\\'.cast_signed()));
    let either = |half| _mm256_or_si256(_mm256_cmpeq_epi8(half, quote), _mm256_cmpeq_epi8(half, backslash));
    _mm256_or_si256(either(block.0), either(block.1))
}

/// The least of both halves after the shift that brings all bad bytes to the bottom.
#[target_feature(enable = "avx2")]
#[inline]
fn shifted_least(block: Block) -> __m256i {
    let shift = _mm256_set1_epi8(BAD_SHIFT.cast_signed());
    _mm256_min_epu8(_mm256_add_epi8(block.0, shift), _mm256_add_epi8(block.1, shift))
}

#[target_feature(enable = "avx2")]
#[inline]
fn none_bad(least: __m256i) -> bool {
    let last = _mm256_set1_epi8(BAD_LAST.cast_signed());
    _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(least, last), least)) == 0
}

/// Marks the bad bytes of a block.
#[target_feature(enable = "avx2")]
#[inline]
fn bad(block: Block) -> u64 {
    let (shift, last) = (_mm256_set1_epi8(BAD_SHIFT.cast_signed()), _mm256_set1_epi8(BAD_LAST.cast_signed()));
    let half = |half| {
        let shifted = _mm256_add_epi8(half, shift);
        _mm256_cmpeq_epi8(_mm256_min_epu8(shifted, last), shifted)
    };
    bits(Block(half(block.0), half(block.1)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn bits(block: Block) -> u64 {
    let half = |half| u64::from(_mm256_movemask_epi8(half).cast_unsigned());
    half(block.0) | half(block.1) << 32
}
