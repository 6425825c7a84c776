use super::*;
use crate::trace::{Blocks, Request, Session};

fn request(at_s: f64, think_s: f64, input_tokens: u64, ids: &[u64]) -> Request {
    let mut blocks = Blocks::default();
    ids.iter().for_each(|&id| blocks.push(id, 1).unwrap());
    Request { at_s, think_s, input_tokens, output_tokens: 1, blocks }
}

fn trace(format: Format, sessions: Vec<Vec<Request>>) -> Trace {
    let session = |(n, requests)| Session { id: format!("{n}"), scope: String::new(), requests };
    Trace {
        name: "t".into(),
        format,
        block_tokens: 64,
        sessions: sessions.into_iter().enumerate().map(session).collect(),
    }
}

#[test]
fn the_cluster_holds_the_share_in_whole_engine_blocks() {
    let made = capacity(1_000_000, 0.1, 4, 64, 1000);
    assert_eq!((made.kv_tokens_per_engine, made.share, made.raised_from), (25_024, 0.1, None));
    let exact = capacity(640_000, 0.1, 4, 16, 1000);
    assert_eq!(exact.kv_tokens_per_engine, 16_000);
}

#[test]
fn too_small_a_share_is_raised_to_the_largest_request_and_says_so() {
    let made = capacity(1_000_000, 0.01, 4, 64, 60_000);
    assert_eq!((made.kv_tokens_per_engine, made.raised_from), (60_032, Some(2500)));
    assert!((made.share - 4.0 * 60_032.0 / 1_000_000.0).abs() < 1e-12);
}

#[test]
fn the_floor_is_the_largest_request_its_template_an_answer_and_a_block() {
    let trace =
        trace(Format::Agentic, vec![vec![request(0.0, 0.0, 100, &[1]), request(0.0, 0.0, 20_000, &[1])]]);
    let prose = Prose::new(1, 64, 0.25).unwrap();
    // 20,000 tokens are two messages (16,384 tokens each): 128 bytes of template, 512 tokens.
    assert_eq!(kv_floor_tokens(&trace, &prose, 0.25, 2, 64), 20_000 + 512 + 2 + 64);
}

#[test]
fn a_step_lasts_a_quarter_second_at_every_rate() {
    assert_eq!((step_tokens(31_250.0), step_tokens(8000.0), step_tokens(1.0)), (7813, 2000, STEP_TOKENS_MIN));
}

#[test]
fn the_closed_loop_rate_follows_live_sessions_and_engines() {
    let trace = trace(Format::Agentic, vec![vec![request(0.0, 0.0, 64, &[1])]]);
    assert_eq!(prefill_tokens_per_s(&trace, 4, 200, 0, 0.6).unwrap(), 31_250.0);
}

#[test]
fn the_open_loop_rate_makes_the_pooled_cache_run_at_the_load_asked_for() {
    // 128 + 64 (second block is new) uncached tokens, then a repeat that computes one token, within 10 s.
    let requests = vec![
        request(0.0, 0.0, 128, &[1, 2]),
        request(5.0, 0.0, 128, &[1, 3]),
        request(10.0, 0.0, 128, &[1, 3]),
    ];
    let trace = trace(Format::Mooncake, vec![requests]);
    assert_eq!(pooled::uncached_tokens(&trace, 1 << 20), 128 + 64 + 1);
    let rate = prefill_tokens_per_s(&trace, 2, 0, 1 << 20, 0.6).unwrap();
    assert!((rate - 193.0 / (2.0 * 10.0 * 0.6)).abs() < 1e-9);
    let at_once = super::tests::trace(Format::Mooncake, vec![vec![request(0.0, 0.0, 128, &[1])]]);
    assert!(
        prefill_tokens_per_s(&at_once, 2, 0, 1 << 20, 0.6).unwrap_err().contains("--prefill-tokens-per-s")
    );
}

#[test]
fn expected_length_covers_work_thinking_and_the_longest_session() {
    let thoughtful = vec![request(0.0, 1000.0, 6400, &[1]), request(0.0, 1000.0, 6400, &[1])];
    let long = trace(Format::Agentic, vec![thoughtful, vec![request(0.0, 0.0, 6400, &[1])]]);
    // Thinking is capped at 300 s a request; one session thinks 600 s, more than work and mean thinking.
    assert_eq!(expected_length_s(&long, 1, 2, 1e9), 600.0);
    let expected = 19_200.0 / 2.0 + 600.0 / 2.0;
    assert!((expected_length_s(&long, 1, 2, 2.0) - expected).abs() < 1e-9);
}

proptest::proptest! {
    /// Against an LRU written the slowest and plainest way: a list, oldest first.
    #[test]
    fn the_pooled_cache_is_an_lru(
        requests in proptest::collection::vec(proptest::collection::vec(0u64..12, 0..6), 1..40), blocks in 0u64..10
    ) {
        let mut list: Vec<u64> = Vec::new();
        let mut expected = 0;
        let mut recorded = Vec::new();
        for ids in &requests {
            let tokens = ids.len() as u64 * 64 + 10;
            recorded.push(request(0.0, 0.0, tokens, ids));
            let held = ids.iter().take_while(|id| list.contains(id)).count() as u64;
            expected += tokens - held * 64;
            for id in ids.iter().rev() {
                list.retain(|other| other != id);
                list.push(*id);
                if list.len() as u64 > blocks { list.remove(0); }
            }
        }
        proptest::prop_assert_eq!(pooled::uncached_tokens(&trace(Format::Mooncake, vec![recorded]), blocks * 64), expected);
    }
}
