use super::*;
use crate::trace::{Blocks, Session};

pub(crate) fn request(think_s: f64, tokens: u64, ranges: &[(u64, u64)]) -> Request {
    let mut blocks = Blocks::default();
    ranges.iter().for_each(|&(start, len)| blocks.push(start, len).unwrap());
    Request { at_s: 0.0, think_s, input_tokens: tokens, output_tokens: 1, blocks }
}

pub(crate) fn trace(sessions: &[(&str, Vec<Request>)]) -> Trace {
    let sessions = sessions.iter().map(|(scope, requests)| Session {
        id: (*scope).to_owned(),
        scope: (*scope).to_owned(),
        requests: requests.clone(),
    });
    Trace { name: "t".into(), format: Format::Agentic, block_tokens: 10, sessions: sessions.collect() }
}

#[test]
fn a_block_is_what_it_follows() {
    let requests = vec![
        request(0.0, 45, &[(0, 4)]),
        request(0.0, 60, &[(0, 2), (9, 2), (2, 2)]),
        request(0.0, 70, &[(0, 6)]),
    ];
    let workload = Workload::new(&trace(&[("a", requests.clone()), ("b", requests)]), 10).unwrap();
    let chains: Vec<&[Span]> = (0..6).map(|job| workload.chain(job)).collect();
    assert_eq!(chains[0], &[(0, 4)]);
    // Blocks 2 and 3 after other blocks are other content.
    assert_eq!(chains[1], &[(0, 2), (4, 4)]);
    assert_eq!(chains[2], &[(0, 4), (8, 2)]);
    assert_eq!(chains[3], &[(10, 4)], "another scope shares nothing");
    assert_eq!(workload.unique_tokens, 2 * 80);
    assert_eq!(workload.sessions, [0..3, 3..6]);
}

#[test]
fn blocks_beyond_the_tokens_are_cut_and_the_last_token_is_never_saved() {
    let workload = Workload::new(&trace(&[("a", vec![request(0.0, 20, &[(0, 9)])])]), 10).unwrap();
    assert_eq!((workload.chain(0), workload.jobs[0].blocks), (&[(0, 2)][..], 2));
    assert_eq!((workload.saved(0, 1), workload.saved(0, 2)), (10, 19));
}

#[test]
fn coarser_blocks_keep_whole_groups_only() {
    let requests = vec![request(0.0, 75, &[(0, 7)]), request(0.0, 90, &[(0, 4), (20, 5)])];
    let sessions = [("a", requests)];
    let workload = Workload::new(&trace(&sessions), 20).unwrap();
    assert_eq!((workload.chain(0), workload.chain(1)), (&[(0, 3)][..], &[(0, 2), (3, 2)][..]));
    assert!(Workload::new(&trace(&sessions), 15).is_err());
}
