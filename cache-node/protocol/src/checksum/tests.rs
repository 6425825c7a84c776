use super::*;

/// The definition spelled out a second way.
fn naive(chunk: &[u8]) -> u128 {
    let sums: Vec<u8> = chunk.chunks(4096).flat_map(|piece| xxh64(piece, 0).to_le_bytes()).collect();
    xxh3_128(&sums)
}

#[test]
fn is_xxh3_of_the_piece_sums_whatever_the_length() {
    let bytes: Vec<u8> = (0..20_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for length in [0, 1, 4095, 4096, 4097, 8192, 12_289, 20_000] {
        assert_eq!(chunk_checksum(&bytes[..length]).0, naive(&bytes[..length]), "{length} bytes");
    }
}

/// Frozen, and made by another implementation of XXH64 and XXH3: a store that survives a restart, a peer, or a GPU kernel must agree with these.
#[test]
fn golden() {
    assert_eq!(format!("{:032x}", chunk_checksum(&[]).0), "99aa06d3014798d86001c324468d497f");
    let ramp: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(format!("{:032x}", chunk_checksum(&ramp).0), "e61b383bcdf71f1a9ad6a8f17f29b2ec");
}

#[test]
fn every_single_bit_counts() {
    let mut chunk = vec![7_u8; 9000];
    let good = chunk_checksum(&chunk);
    for bit in [0, 1, 4095 * 8 + 7, 4096 * 8, 8999 * 8 + 3] {
        chunk[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(chunk_checksum(&chunk), good, "bit {bit}");
        chunk[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(chunk_checksum(&chunk), good);
}
