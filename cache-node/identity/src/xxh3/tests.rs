use super::*;
use crate::Simd;

fn hasher(run: usize, simd: Simd) -> RunHasher {
    RunHasher::new(&Secret::derive(b"tests"), RunBytes::try_from(run).unwrap(), Cpu::select(simd))
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

#[test]
fn runs_equal_the_reference_on_every_path_and_length() {
    let input = noise(3 * RunBytes::MAX + 1);
    for run in [64, 128, 256, 512, 1024, 2048, 4096] {
        for simd in [Simd::Detect, Simd::Portable] {
            let hasher = hasher(run, simd);
            let mut got = Vec::new();
            hasher.runs(&input[1..], &mut got);
            let want: Vec<u64> =
                input[1..].chunks(run).map(|run| xxh3_64_with_secret(run, &hasher.secret)).collect();
            assert_eq!(got, want, "run {run} {simd:?}");
        }
    }
}

#[test]
fn a_link_is_the_hash_of_sixteen_bytes() {
    let hasher = hasher(512, Simd::Detect);
    for words in noise(1600).chunks(16) {
        let (a, b) = words.split_at(8);
        let read = |word: &[u8]| u64::from_le_bytes(word.try_into().unwrap());
        assert_eq!(hasher.link(read(a), read(b)), xxh3_64_with_secret(words, &hasher.secret));
    }
}

#[test]
fn streaming_equals_one_shot_at_every_length() {
    let hasher = hasher(512, Simd::Detect);
    let input = noise(1200);
    for len in 0..input.len() {
        let mut stream = hasher.stream();
        for piece in input[..len].chunks(37) {
            stream.put(piece);
        }
        assert_eq!(stream.finish(), hasher.hash(&input[..len]), "length {len}");
    }
}

#[test]
fn a_different_secret_changes_every_hash() {
    let input = noise(4096);
    let hash = |passphrase: &[u8]| {
        let hasher =
            RunHasher::new(&Secret::derive(passphrase), RunBytes::default(), Cpu::select(Simd::Detect));
        let mut out = vec![hasher.link(1, 2)];
        hasher.runs(&input, &mut out);
        out
    };
    assert!(hash(b"a").iter().zip(hash(b"b")).all(|(a, b)| *a != b));
}
