// The parts of a chunk's checksum: the XXH64 (seed 0) of each piece of 4 KiB, the last may be shorter.
//
// Piece i's sum goes to sums[i]; the node makes the one checksum out of them. One thread per piece, so the grid
// covers the pieces. `bytes` begin at an address that is a multiple of 8.
// XXH64: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
#include "freestanding.cuh"

#define PIECE_BYTES 4096ull
#define P1 0x9E3779B185EBCA87ull
#define P2 0xC2B2AE3D27D4EB4Full
#define P3 0x165667B19E3779F9ull
#define P4 0x85EBCA77C2B2AE63ull
#define P5 0x27D4EB2F165667C5ull

__device__ static inline u64 rotl(u64 x, u32 by) { return (x << by) | (x >> (64 - by)); }

__device__ static inline u64 round1(u64 lane, u64 input) { return rotl(lane + input * P2, 31) * P1; }

__device__ static inline u64 merge(u64 hash, u64 lane) { return (hash ^ round1(0, lane)) * P1 + P4; }

__device__ static inline u64 xxh64(const u8 *at, u64 length) {
    const u8 *end = at + length;
    u64 hash = P5;
    if (length >= 32) {
        u64 a = P1 + P2, b = P2, c = 0, d = 0 - P1;
        for (; at + 32 <= end; at += 32) {
            const u64 *in = (const u64 *)at;
            a = round1(a, in[0]);
            b = round1(b, in[1]);
            c = round1(c, in[2]);
            d = round1(d, in[3]);
        }
        hash = rotl(a, 1) + rotl(b, 7) + rotl(c, 12) + rotl(d, 18);
        hash = merge(merge(merge(merge(hash, a), b), c), d);
    }
    hash += length;
    for (; at + 8 <= end; at += 8) hash = rotl(hash ^ round1(0, *(const u64 *)at), 27) * P1 + P4;
    if (at + 4 <= end) {
        hash = rotl(hash ^ (u64)(*(const u32 *)at) * P1, 23) * P2 + P3;
        at += 4;
    }
    for (; at < end; at++) hash = rotl(hash ^ (u64)*at * P5, 11) * P1;
    hash = (hash ^ (hash >> 33)) * P2;
    hash = (hash ^ (hash >> 29)) * P3;
    return hash ^ (hash >> 32);
}

extern "C" __global__ void larder_checksum(const u8 *chunk, u64 bytes, u64 *sums) {
    u64 piece = (u64)block_x() * threads_x() + thread_x();
    u64 from = piece * PIECE_BYTES;
    if (from >= bytes) return;
    u64 left = bytes - from;
    sums[piece] = xxh64(chunk + from, left < PIECE_BYTES ? left : PIECE_BYTES);
}
