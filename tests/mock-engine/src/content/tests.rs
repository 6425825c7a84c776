use proptest::prelude::*;

use super::*;

#[test]
fn a_block_must_cover_whole_bytes() {
    for (block_tokens, bytes_per_token, block_bytes) in
        [(16, 4.0, 64), (16, 0.25, 4), (16, 0.0625, 1), (32, 3.5, 112)]
    {
        assert_eq!(Tokeniser::new(block_tokens, bytes_per_token).unwrap().block_bytes(), block_bytes);
    }
    for bytes_per_token in [0.0, -4.0, 0.03, 4.01, f64::NAN, f64::INFINITY, 1e9] {
        assert!(Tokeniser::new(16, bytes_per_token).is_err(), "{bytes_per_token}");
    }
}

#[test]
fn tokens_round_up() {
    let four = Tokeniser::new(16, 4.0).unwrap();
    assert_eq!([0, 1, 4, 5].map(|bytes| four.tokens_in(bytes)), [0, 1, 1, 2]);
    let quarter = Tokeniser::new(16, 0.25).unwrap();
    assert_eq!([0, 1, 4].map(|bytes| quarter.tokens_in(bytes)), [0, 4, 16]);
}

#[test]
fn hashes_name_everything_before_them() {
    let tokeniser = Tokeniser::new(4, 1.0).unwrap();
    let of = |text: &str, root| tokeniser.block_hashes(root, text.as_bytes());
    let base = of("aaaabbbbcccc", 1);
    assert_eq!(base.len(), 3);
    assert_eq!(of("aaaabbbbccccd", 1), base, "a part of a block has no hash");
    assert_eq!(of("aaaabbbbdddd", 1)[..2], base[..2]);
    let other = of("xaaabbbbcccc", 1);
    assert!(base.iter().zip(&other).all(|(one, two)| one != two), "a change at the front changes all");
    assert!(base.iter().zip(of("aaaabbbbcccc", 2)).all(|(one, two)| *one != two), "so does the root");
}

#[test]
fn roots_keep_models_and_salts_apart() {
    let roots =
        [chain_root("a", None), chain_root("b", None), chain_root("a", Some("b")), chain_root("", Some("a"))];
    for (at, root) in roots.iter().enumerate() {
        assert!(!roots[..at].contains(root), "{roots:x?}");
    }
}

#[test]
fn answers_name_their_request_however_short() {
    let tokeniser = Tokeniser::new(16, 4.0).unwrap();
    let short = Answer::new(tokeniser, 1, 0xabc, 17, 0);
    assert_eq!(short.text(), "req-0000000000000abc len-17 ");
    assert_eq!(short.token_text(0), short.text());
    assert_eq!(short.computed_text(), "req-");
    let long = Answer::new(tokeniser, 100, 0xabc, 17, 0);
    assert!(long.text().starts_with(short.text()));
    assert_eq!(long.text().len(), 400);
    assert_ne!(long.text(), Answer::new(tokeniser, 100, 0xabc, 17, 1).text(), "the seed makes the filler");
}

proptest! {
    #[test]
    fn tokens_of_an_answer_join_to_its_text(tokens in 1..200_u32, sixteenths in 1..128_u32, hash: u64) {
        let tokeniser = Tokeniser::new(16, f64::from(sixteenths) / 16.0).unwrap();
        let answer = Answer::new(tokeniser, tokens, hash, 1234, 7);
        let joined: String = (0..tokens).map(|index| answer.token_text(index)).collect();
        prop_assert_eq!(&joined, answer.text());
        prop_assert_eq!(answer.token_text(tokens), "");
        prop_assert!(answer.text().bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '));
        prop_assert!(!answer.text().contains(['"', '\\']), "JSON would escape it");
        prop_assert!(tokeniser.tokens_in(answer.computed_text().len()) <= u64::from(tokens));
    }

    #[test]
    fn counting_inverts_cutting(tokens in 0..100_000_u64, sixteenths in 1..200_u32) {
        let tokeniser = Tokeniser::new(16, f64::from(sixteenths) / 16.0).unwrap();
        prop_assert!(tokeniser.tokens_in(tokeniser.bytes_of(tokens)) <= tokens);
        prop_assert!(tokeniser.tokens_in(tokeniser.bytes_of(tokens) + 1) > tokens);
    }

    #[test]
    fn token_ids_are_as_many_as_tokens(text: Vec<u8>, sixteenths in 1..128_u32) {
        let tokeniser = Tokeniser::new(16, f64::from(sixteenths) / 16.0).unwrap();
        prop_assert_eq!(tokeniser.token_ids(&text).len() as u64, tokeniser.tokens_in(text.len()));
    }
}
