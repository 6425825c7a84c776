use super::*;
use crate::trace::Blocks;

fn session(id: &str, scope: &str, requests: &[(u64, &[u64])]) -> Session {
    let requests = requests
        .iter()
        .map(|&(input_tokens, ids)| {
            let mut blocks = Blocks::default();
            ids.iter().for_each(|&id| blocks.push(id, 1).unwrap());
            Request { at_s: 0.0, think_s: 0.0, input_tokens, output_tokens: 1, blocks }
        })
        .collect();
    Session { id: id.into(), scope: scope.into(), requests }
}

/// The prompt text of a body, without what the chat template would add.
fn content(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    body["messages"].as_array().unwrap().iter().map(|message| message["content"].as_str().unwrap()).collect()
}

fn shared(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

#[test]
fn a_body_is_a_streamed_chat_request_of_the_right_length() {
    let prose = Prose::new(1, 64, 0.25).unwrap();
    let ids: Vec<u64> = (0..700).collect();
    let session = session("a", "a", &[(700 * 64 + 30, &ids)]);
    let body = prose.body(&session, 0, "mock", 2);
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (json["model"].as_str(), json["stream"].as_bool(), json["max_tokens"].as_u64()),
        (Some("mock"), Some(true), Some(2))
    );
    assert_eq!(json["stream_options"]["include_usage"], true);
    // 256 blocks of 16 bytes a message; 30 tokens of a block are 7.5 bytes, rounded.
    let roles: Vec<&str> =
        json["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    assert_eq!(content(&body).len(), 700 * 16 + 8);
    assert_eq!(prose.messages(700 * 64 + 30), 3);
    assert_eq!(prose.bytes(700 * 64 + 30), 700 * 16 + 8);
}

proptest::proptest! {
    /// Two prompts share exactly the text of the blocks they share: not less, and (names being 64-bit hashes) not more.
    #[test]
    fn prompts_share_exactly_the_text_of_their_common_blocks(
        common in 0u64..600, more in (0u64..300, 0u64..300), rest in (0u64..64, 0u64..64),
        bytes_per_token in proptest::sample::select(vec![0.25, 0.5, 1.0, 4.0])
    ) {
        let prose = Prose::new(7, 64, bytes_per_token).unwrap();
        let with = |extra: u64, from: u64| (0..common).chain(from..from + extra).collect::<Vec<u64>>();
        let (a, b) = (with(more.0, 10_000), with(more.1, 20_000));
        let tokens = |ids: &[u64], rest: u64| (ids.len() as u64 * 64 + rest).max(1);
        let session = session("s", "s", &[(tokens(&a, rest.0), &a), (tokens(&b, rest.1), &b)]);
        let (a, b) = (prose.body(&session, 0, "m", 1), prose.body(&session, 1, "m", 1));
        let (text_a, text_b) = (content(&a), content(&b));
        let expected = (common as f64 * 64.0 * bytes_per_token) as usize;
        let found = shared(&text_a, &text_b);
        proptest::prop_assert!(found >= expected);
        // The names after it part within their first characters, unless one prompt ends there.
        let part = expected + 4;
        proptest::prop_assert!(found < part || found == text_a.len() || found == text_b.len(), "{} of {}", found, expected);
        // The bodies share it too: same messages, same roles, up to the same byte.
        let bodies = shared(std::str::from_utf8(&a).unwrap(), std::str::from_utf8(&b).unwrap());
        proptest::prop_assert!(bodies >= expected);
    }
}

#[test]
fn scopes_and_seeds_keep_equal_ids_apart() {
    let prose = Prose::new(1, 64, 0.25).unwrap();
    let text = |prose: &Prose, id: &str, scope: &str| {
        content(&prose.body(&session(id, scope, &[(128, &[1, 2])]), 0, "m", 1))
    };
    let base = text(&prose, "a", "a");
    assert_eq!(base, text(&prose, "a", "a"));
    assert_ne!(base, text(&prose, "b", "b"));
    assert_ne!(base, text(&Prose::new(2, 64, 0.25).unwrap(), "a", "a"));
    assert_eq!(text(&prose, "a", ""), text(&prose, "b", ""));
}

#[test]
fn a_cut_block_is_the_beginning_of_the_whole_one_and_own_tokens_are_not_shared() {
    let prose = Prose::new(1, 512, 1.0).unwrap();
    let session = session("", "", &[(700, &[5, 6]), (1024, &[5, 6]), (700, &[5]), (700, &[5])]);
    let texts: Vec<String> = (0..4).map(|index| content(&prose.body(&session, index, "m", 1))).collect();
    assert!(texts[1].starts_with(&texts[0]));
    assert!(shared(&texts[2], &texts[3]) < 516);
    assert_eq!(texts[2].len(), 700);
}

#[test]
fn text_needs_no_escapes_and_short_blocks_are_refused() {
    assert!(
        CODE.iter().chain(NAME).all(|&byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\')
    );
    assert!(Prose::new(1, 64, 0.05).unwrap_err().contains("3 bytes long"));
    assert!(Prose::new(1, 64, 0.0625).is_ok());
}

/// Figures published with a seed must be reproducible by later versions.
#[test]
fn golden_words() {
    let prose = Prose::new(1, 64, 0.25).unwrap();
    let body = prose.body(&session("a", "a", &[(128, &[1, 2])]), 0, "mock", 2);
    assert_eq!(std::str::from_utf8(&body).unwrap(), GOLDEN);
}

const GOLDEN: &str = concat!(
    r#"{"model":"mock","messages":[{"role":"system","content":"v_lrhP5ubvn righO4NxOnKhWpjght: "}],"max_tokens":2,"#,
    r#""ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}"#
);
