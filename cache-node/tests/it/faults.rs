//! Engines that do not behave: each costs itself, and nobody else anything.

use larder_protocol::ToEngine;
use larder_protocol::code::{ErrorCode, RejectCode};
use larder_protocol::frame::frame;
use larder_protocol::message::{Hello, LIST_LEN_MAX, Lookup, Role, Verdict};

use crate::engine::{Engine, Wire, hello, keys, register};
use crate::node::{self, Node};

/// What the node says before it closes the connection.
fn last_words(wire: &mut Wire) -> Vec<ToEngine> {
    std::iter::from_fn(|| wire.hear()).collect()
}

fn error_codes(said: &[ToEngine]) -> Vec<ErrorCode> {
    let code = |message: &ToEngine| match message {
        ToEngine::ErrorAnswer(error) => Some(error.code),
        _ => None,
    };
    said.iter().filter_map(code).collect()
}

/// A good engine that must not notice anything.
fn bystander(node: &Node) -> Engine {
    let mut engine = Engine::connect(&node.socket(), "bystander", register(100_000, 1, 1));
    assert_eq!(engine.offload(0..4), [Verdict::Accepted; 4]);
    engine
}

#[test]
fn garbage_and_wrong_lengths_end_the_connection() {
    let node = node::start("");
    let mut bystander = bystander(&node);
    for garbage in [
        &[0; 4][..],
        &[0xff; 4],
        &frame(b"\xc1"),
        &frame(b"not msgpack at all"),
        &frame(&[0xdf, 0xff, 0xff, 0xff, 0xff]),
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut wire = Wire::connect(&node.socket());
        wire.raw(garbage);
        assert_eq!(error_codes(&last_words(&mut wire)), [ErrorCode::BadFrame], "{garbage:x?}");
    }
    assert_eq!(bystander.load_and_compare(0..4), 4);
}

#[test]
fn half_a_frame_and_silence_are_not_served_forever() {
    let node = node::start("");
    let mut bystander = bystander(&node);
    let mut half = Wire::connect(&node.socket());
    half.raw(&frame(&larder_protocol::ToNode::from(hello(Role::Worker, 0, "half")).encode())[..9]);
    // Five seconds without a hello; said goodbye to.
    assert!(matches!(last_words(&mut half)[..], [ToEngine::Farewell(_)]));
    assert_eq!(bystander.load_and_compare(0..4), 4);
}

#[test]
fn wrong_versions_and_taken_names_are_rejected() {
    let node = node::start("");
    let _bystander = bystander(&node);
    for (hello, code) in [
        (Hello { versions: vec![0, 4, 9], ..hello(Role::Worker, 0, "x") }, RejectCode::Version),
        (Hello { versions: vec![], ..hello(Role::Worker, 0, "x") }, RejectCode::Version),
        (hello(Role::Scheduler, 0, "bystander"), RejectCode::EngineInUse),
        (hello(Role::Worker, 0, "bystander"), RejectCode::EngineInUse),
    ] {
        let mut wire = Wire::connect(&node.socket());
        wire.say(hello);
        let said = last_words(&mut wire);
        assert!(matches!(&said[0], ToEngine::Reject(reject) if reject.code == code), "{said:?}");
    }
}

#[test]
fn a_second_hello_ends_the_session() {
    let node = node::start("");
    let mut bystander = bystander(&node);
    let mut engine = Engine::connect(&node.socket(), "twice", register(100_000, 1, 1));
    engine.wire.say(hello(Role::Scheduler, 0, "twice"));
    assert_eq!(error_codes(&last_words(&mut engine.wire)), [ErrorCode::Unexpected]);
    last_words(&mut engine.workers[0].wire);
    node.wait_for("sessions", 1);
    assert_eq!(bystander.load_and_compare(0..4), 4);
}

#[test]
fn unknown_kinds_and_bad_messages_are_answered_sixteen_times() {
    let node = node::start("");
    let mut engine = bystander(&node);
    // {"kind": "zzz", "id": 5}
    let unknown = frame(b"\x82\xa4kind\xa3zzz\xa2id\x05");
    engine.wire.raw(&unknown);
    let ToEngine::ErrorAnswer(error) = engine.hear() else { panic!("an error") };
    assert_eq!((error.code, error.id), (ErrorCode::UnknownKind, Some(5)));
    let mut long = Lookup {
        id: 9,
        keys: Vec::new(),
        end_tokens: (1..=LIST_LEN_MAX as u32).collect(),
        request: None,
        tag: None,
        prompt_tokens: None,
    };
    let ToEngine::ErrorAnswer(error) = engine.ask(long.clone()) else { panic!("an error") };
    assert_eq!((error.code, error.id), (ErrorCode::BadMessage, Some(9)));
    long.end_tokens.clear();
    long.keys = keys(0..1);
    assert!(matches!(engine.ask(long), ToEngine::ErrorAnswer(_)));
    assert_eq!(engine.load_and_compare(0..4), 4, "and the session goes on");
    for _ in 0..14 {
        engine.wire.raw(&unknown);
    }
    let codes = error_codes(&last_words(&mut engine.wire));
    assert_eq!(codes.last(), Some(&ErrorCode::TooManyFaults));
}

#[test]
fn a_list_above_the_cap_is_refused_whole() {
    let node = node::start("");
    let mut engine = bystander(&node);
    let count = LIST_LEN_MAX as u32 + 1;
    // {"kind": "offload", "id": 5, "keys": [65,537 keys of one byte]}
    let mut body = b"\x83\xa4kind\xa7offload\xa2id\x05\xa4keys\xdd".to_vec();
    body.extend(count.to_be_bytes());
    (0..count).for_each(|_| body.extend(b"\xc4\x01k"));
    engine.wire.raw(&frame(&body));
    let ToEngine::ErrorAnswer(error) = engine.hear() else { panic!("an error") };
    assert_eq!((error.code, error.id), (ErrorCode::BadMessage, Some(5)));
    assert!(error.message.contains("65537"), "{}", error.message);
    assert_eq!(engine.load_and_compare(0..4), 4);
}

#[test]
fn commits_of_slots_that_are_not_the_engines_store_nothing() {
    let node = node::start("");
    let mut engine = bystander(&node);
    let slots = engine.registered.region_slots;
    for wrong in [vec![0, slots], vec![3, 3], vec![0, u32::MAX]] {
        let mut commit = engine.commit_message(50..52);
        commit.region_slots = wrong;
        let ToEngine::ErrorAnswer(error) = engine.ask(commit) else { panic!("an error") };
        assert_eq!(error.code, ErrorCode::BadRegionSlot);
    }
    assert_eq!(engine.load_and_compare(50..52), 0);
}

#[test]
fn nobody_uses_a_lease_that_is_not_its_own() {
    let node = node::start("");
    let mut engine = bystander(&node);
    let mut thief = Engine::connect(&node.socket(), "thief", register(100_000, 1, 1));
    let lease = engine.lease(0..4);
    for answer in [thief.load(lease.lease, 4), thief.complete(lease.lease), thief.release(lease.lease)] {
        assert!(
            matches!(&answer, ToEngine::ErrorAnswer(error) if error.code == ErrorCode::NoLease),
            "{answer:?}"
        );
    }
    assert!(matches!(engine.load(lease.lease, 5), ToEngine::ErrorAnswer(_)), "nor more of it than there is");
    assert!(matches!(engine.load(lease.lease, 4), ToEngine::Okay(_)));
}
