//! One message of each kind against `golden/engine-port-v1.txt`, whose bytes another codec made. A change that moves
//! any of them breaks every plugin in the field.

use crate::code::{ErrorCode, MissReason, PageOrder, RefusedCode, RejectCode};
use crate::frame::frame;
use crate::id::{BlockKey, DeviceId, GpuHandle, LeaseId, NodeId, StoreNamespace, Tag, WireSession};
use crate::message::*;

fn key(byte: u8) -> BlockKey {
    BlockKey::new(&[byte, 0, 1, 2]).unwrap()
}

const LEASE: LeaseId = LeaseId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
const TAG: Tag = Tag(0xaa);

pub(crate) fn to_node() -> Vec<ToNode> {
    let hello = Hello {
        versions: vec![1],
        role: Role::Worker,
        rank: 0,
        engine: "e1".into(),
        endpoint: Some("http://a:8000".into()),
        software: None,
    };
    let register = Register {
        id: 1,
        model: "tiny".into(),
        hash: "sha256_cbor".into(),
        weights: vec![0x11; 16],
        epoch: 0,
        layout: vec![0x22; 16],
        dtype: "float32".into(),
        tokens_per_block: 32,
        blocks_per_chunk: 2,
        part_bytes: 131_072,
        world: 1,
    };
    let lookup = Lookup {
        id: 2,
        keys: vec![key(1), key(2)],
        end_tokens: vec![64, 128],
        request: Some("r-1".into()),
        tag: Some(TAG),
        prompt_tokens: Some(150),
    };
    let commit = Commit {
        id: 7,
        keys: vec![key(3)],
        end_tokens: vec![192],
        region_slots: vec![300],
        request: None,
        tag: None,
        prompt_tokens: None,
        parent: None,
    };
    vec![
        hello.into(),
        register.into(),
        lookup.into(),
        Load { id: 3, lease: LEASE, first: 0, count: 2 }.into(),
        Complete { id: 4, lease: LEASE, ok: false, failed: Some(vec![1]) }.into(),
        Release { id: 5, lease: LEASE }.into(),
        Offload { id: 6, keys: vec![key(3)] }.into(),
        commit.into(),
        Epoch { id: 8, epoch: 1 << 40 }.into(),
        Goodbye { reason: "shutdown".into() }.into(),
    ]
}

pub(crate) fn to_engine() -> Vec<ToEngine> {
    let registered = Registered {
        id: 1,
        namespace: StoreNamespace(7),
        slab_bytes: 1 << 30,
        extent_bytes: 64 << 20,
        slots_per_extent: 1024,
        slot_stride: 131_072,
        region_bytes: 32 << 20,
        region_stride: 131_072,
        region_slots: 256,
        lease_ttl_ms: 30_000,
        fds: 3,
        session: None,
    };
    let grant = Grant {
        lease: LEASE,
        tag: TAG,
        keys: vec![key(1)],
        end_tokens: vec![64],
        slots: vec![1025],
        generations: vec![2],
        expires_ms: 30_000,
    };
    let verdicts = Verdicts(vec![Verdict::Accepted, Verdict::Held, Verdict::Refused]);
    vec![
        Welcome { version: 1, node: NodeId(1), frame_bytes_max: 8 << 20, list_len_max: 65_536 }.into(),
        Reject { code: RejectCode::Version, message: "speaks 1".into() }.into(),
        registered.into(),
        Refused { id: 1, code: RefusedCode::WeakHash, message: "no".into() }.into(),
        Leased { id: 2, lease: LEASE, slots: vec![0, 1025], generations: vec![2, 4], expires_ms: 30_000 }
            .into(),
        Miss { id: 2, reason: MissReason::NotHeld }.into(),
        grant.into(),
        Offloading { id: 6, verdicts: verdicts.clone() }.into(),
        Committed { id: 7, results: verdicts }.into(),
        Okay { id: 3 }.into(),
        EpochSet { id: 8, namespace: StoreNamespace(8) }.into(),
        ErrorAnswer { id: Some(9), code: ErrorCode::NoLease, message: "ended".into() }.into(),
        ErrorAnswer { id: None, code: ErrorCode::BadFrame, message: "?".into() }.into(),
        Farewell { reason: "shutdown".into() }.into(),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const FIRST: &str = include_str!("../golden/engine-port-v1.txt");
const SECOND: &str = include_str!("../golden/engine-port-v2.txt");
const THIRD: &str = include_str!("../golden/engine-port-v3.txt");
const OPTIONAL: &str = include_str!("../golden/engine-port-v1-optional.txt");

/// The lines of one direction: kind and frame in hex.
fn lines(text: &'static str, direction: &str) -> Vec<(&'static str, &'static str)> {
    let words =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect::<Vec<_>>());
    words.filter(|words| words[0] == direction).map(|words| (words[1], words[2])).collect()
}

#[test]
fn every_message_to_the_node() {
    let (messages, lines) = (to_node(), lines(FIRST, "to_node"));
    assert_eq!(messages.len(), lines.len());
    for (message, (kind, golden)) in messages.into_iter().zip(lines) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToNode::decode(&message.encode()), Ok(message));
    }
}

#[test]
fn every_message_to_the_engine() {
    let (messages, lines) = (to_engine(), lines(FIRST, "to_engine"));
    assert_eq!(messages.len(), lines.len());
    for (message, (kind, golden)) in messages.into_iter().zip(lines) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToEngine::decode(&message.encode()), Ok(message));
    }
}

/// What later versions added.
#[test]
fn every_message_of_version_2() {
    let messages = [ToEngine::from(Pending { id: 2, chunks: 3, bytes: 786_432 })];
    let lines = lines(SECOND, "to_engine");
    assert_eq!(messages.len(), lines.len());
    for (message, (kind, golden)) in messages.into_iter().zip(lines) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToEngine::decode(&message.encode()), Ok(message));
    }
}

pub(crate) fn to_node_of_version_3() -> Vec<ToNode> {
    let attach = Attach {
        id: 10,
        device: DeviceId(0xbeef),
        order: PageOrder::Latent,
        blocks: 16,
        layers: vec![0, 960, 6, 144, 160],
        part_bytes: vec![16_384, 4096],
        part_offsets: vec![512, 0],
        part_pieces: vec![0, 1],
        handles: vec![GpuHandle([7; 64])],
        piece_bytes: vec![2 << 20],
        events: vec![GpuHandle([8; 64])],
    };
    vec![
        attach.into(),
        Fetch { id: 11, lease: LEASE, first: 1, skip: 2, blocks: vec![5, 300], after: Some(0) }.into(),
        Save { id: 12, region_slots: vec![9], blocks: vec![1, 2], after: None }.into(),
    ]
}

pub(crate) fn to_engine_of_version_3() -> Vec<ToEngine> {
    vec![
        Attached { id: 10, events: vec![GpuHandle([9; 64])] }.into(),
        Moving { id: 11, event: 3 }.into(),
        Moved { id: 11, ok: true, quiet: true, message: None }.into(),
        Moved { id: 12, ok: false, quiet: false, message: Some("lost".into()) }.into(),
    ]
}

#[test]
fn every_message_of_version_3() {
    let (messages, golden) = (to_node_of_version_3(), lines(THIRD, "to_node"));
    assert_eq!(messages.len(), golden.len());
    for (message, (kind, golden)) in messages.into_iter().zip(golden) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToNode::decode(&message.encode()), Ok(message));
    }
    let (messages, golden) = (to_engine_of_version_3(), lines(THIRD, "to_engine"));
    assert_eq!(messages.len(), golden.len());
    for (message, (kind, golden)) in messages.into_iter().zip(golden) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToEngine::decode(&message.encode()), Ok(message));
    }
}

/// Fields that came later: with them as the second file says, without them as the first says (the tests above).
#[test]
fn every_optional_field() {
    let continued = to_node().into_iter().filter_map(|message| match message {
        ToNode::Commit(commit) => Some(ToNode::from(Commit { parent: Some(key(2)), ..commit })),
        _ => None,
    });
    let (messages, lines) = (continued.collect::<Vec<_>>(), lines(OPTIONAL, "to_node"));
    assert_eq!(messages.len(), lines.len());
    for (message, (kind, golden)) in messages.into_iter().zip(lines) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToNode::decode(&message.encode()), Ok(message));
    }
    let named = to_engine().into_iter().filter_map(|message| match message {
        ToEngine::Registered(registered) => {
            Some(ToEngine::from(Registered { session: Some(WireSession(9)), ..registered }))
        }
        _ => None,
    });
    let (messages, lines) = (named.collect::<Vec<_>>(), self::lines(OPTIONAL, "to_engine"));
    assert_eq!(messages.len(), lines.len());
    for (message, (kind, golden)) in messages.into_iter().zip(lines) {
        assert_eq!((message.kind(), &hex(&frame(&message.encode()))[..]), (kind, golden));
        assert_eq!(ToEngine::decode(&message.encode()), Ok(message));
    }
}

/// Each word of the wire is read back as itself, and an unknown one is kept as unknown.
#[test]
fn every_word() {
    assert!(RejectCode::ALL.iter().all(|code| RejectCode::from_word(code.as_str()) == *code));
    assert!(RefusedCode::ALL.iter().all(|code| RefusedCode::from_word(code.as_str()) == *code));
    assert!(MissReason::ALL.iter().all(|code| MissReason::from_word(code.as_str()) == *code));
    assert!(ErrorCode::ALL.iter().all(|code| ErrorCode::from_word(code.as_str()) == *code));
    assert!(PageOrder::ALL.iter().all(|code| PageOrder::from_word(code.as_str()) == *code));
    assert_eq!(ErrorCode::from_word("too_hot"), ErrorCode::Unknown);
}
