use proptest::prelude::*;

use super::*;
use crate::fault::{DecodeFault, Malformed};
use crate::golden;
use crate::id::{BlockKey, LeaseId, Tag};
use crate::msgpack::Writer;

fn key(byte: u8) -> BlockKey {
    BlockKey::new(&[byte; 36]).unwrap()
}

/// Writes one value of a body.
type Value<'a> = &'a dyn Fn(&mut Writer);

/// A body built by hand: each field is written by a closure.
fn body(fields: &[(&str, Value<'_>)]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.map(fields.len());
    for (name, value) in fields {
        writer.str(name);
        value(&mut writer);
    }
    writer.into_bytes()
}

#[test]
fn unknown_fields_are_skipped_and_order_is_free() {
    let release = body(&[
        ("later", &|w| {
            w.map(1);
            w.str("x");
            w.array(2);
            w.uint(1);
            w.bin(&[1, 2]);
        }),
        ("lease", &|w| w.bin(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9])),
        ("id", &|w| w.uint(3)),
        ("kind", &|w| w.str("release")),
    ]);
    assert_eq!(ToNode::decode(&release), Ok(Release { id: 3, lease: LeaseId(9) }.into()));
}

#[test]
fn an_unknown_kind_keeps_its_id() {
    let body = body(&[("kind", &|w| w.str("teleport")), ("id", &|w| w.uint(12))]);
    let expected = DecodeFault::UnknownKind { kind: "teleport".into(), id: Some(12) };
    assert_eq!(ToNode::decode(&body), Err(expected));
}

#[test]
fn a_wrong_field_is_named_and_keeps_the_id() {
    let body =
        body(&[("kind", &|w| w.str("release")), ("id", &|w| w.uint(12)), ("lease", &|w| w.bin(&[1, 2]))]);
    let Err(DecodeFault::Message { kind, id: Some(12), fault: Malformed::Field { field: "lease", .. } }) =
        ToNode::decode(&body)
    else {
        panic!("{:?}", ToNode::decode(&body));
    };
    assert_eq!(kind, "release");
}

#[test]
fn what_is_no_map_is_a_bad_frame() {
    for body in
        [&[][..], &[0x01], &[0x81], &[0x81, 0xa1, b'k', 1, 2], &[0x81, 1, 1], &[0xdf, 0xff, 0xff, 0xff, 0xff]]
    {
        assert!(matches!(ToNode::decode(body), Err(DecodeFault::Frame(_))), "{body:x?}");
    }
    let twice = body(&[("kind", &|w| w.str("release")), ("id", &|w| w.uint(1)), ("id", &|w| w.uint(2))]);
    assert_eq!(ToNode::decode(&twice), Err(DecodeFault::Frame(Malformed::Twice("id".into()))));
}

fn lookup(keys: Vec<BlockKey>, end_tokens: Vec<u32>) -> ToNode {
    Lookup { id: 1, keys, end_tokens, request: None, tag: None, prompt_tokens: None }.into()
}

fn fault_of(message: &ToNode) -> Malformed {
    match ToNode::decode(&message.encode()) {
        Err(DecodeFault::Message { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn lists_that_belong_together_must_agree() {
    assert_eq!(fault_of(&lookup(vec![key(1)], vec![])), Malformed::Lengths("keys and end_tokens"));
    assert_eq!(fault_of(&lookup(vec![key(1), key(2)], vec![32, 32])), Malformed::Order);
    assert_eq!(fault_of(&lookup(vec![key(1)], vec![0])), Malformed::Order);
}

#[test]
fn parts_handles_and_pieces_must_agree() {
    let attach = golden::to_node_of_version_3().remove(0);
    let with = |change: fn(&mut Attach)| {
        let ToNode::Attach(mut attach) = attach.clone() else { panic!("{attach:?}") };
        change(&mut attach);
        fault_of(&attach.into())
    };
    for (change, says) in [
        ((|it| it.part_offsets.push(0)) as fn(&mut Attach), "part_bytes, part_offsets and part_pieces"),
        (|it| it.layers.truncate(4), "layers, five numbers each"),
        (|it| it.handles.clear(), "part_pieces, handles and piece_bytes"),
        (|it| it.part_pieces[1] = u32::MAX, "part_pieces, handles and piece_bytes"),
    ] {
        assert_eq!(with(change), Malformed::Lengths(says));
    }
}

/// A list is refused for its length before any of it is built, also when its bytes are all there.
#[test]
fn a_list_above_the_cap_is_refused() {
    let body = body(&[
        ("kind", &|w| w.str("complete")),
        ("id", &|w| w.uint(1)),
        ("lease", &|w| w.bin(&[0; 16])),
        ("ok", &|w| w.bool(false)),
        ("failed", &|w| {
            w.array(LIST_LEN_MAX + 1);
            (0..=LIST_LEN_MAX).for_each(|_| w.uint(1));
        }),
    ]);
    let Err(DecodeFault::Message { fault: Malformed::Field { field: "failed", fault }, .. }) =
        ToNode::decode(&body)
    else {
        panic!("accepted");
    };
    assert_eq!(*fault, Malformed::Limit { what: "list", found: LIST_LEN_MAX + 1, max: LIST_LEN_MAX });
}

/// The largest message fits into a frame, so that `frame` never fails.
#[test]
fn the_largest_grant_fits_into_a_frame() {
    let many = LIST_LEN_MAX;
    let grant = Grant {
        lease: LeaseId(1),
        tag: Tag(1),
        keys: vec![BlockKey::new(&[7; 64]).unwrap(); many],
        end_tokens: (0..many as u32).map(|i| u32::MAX - many as u32 + i).collect(),
        slots: vec![u32::MAX; many],
        generations: vec![u64::MAX; many],
        expires_ms: u32::MAX,
    };
    let body = ToEngine::from(grant.clone()).encode();
    assert!(body.len() < crate::FRAME_BYTES_MAX, "{} bytes", body.len());
    assert_eq!(ToEngine::decode(&body), Ok(grant.into()));
}

#[test]
fn slots_outside_the_slab_have_no_offset() {
    let registered = golden::to_engine().into_iter().find_map(|message| match message {
        ToEngine::Registered(registered) => Some(registered),
        _ => None,
    });
    let registered = registered.unwrap();
    assert_eq!(registered.slot_offset(0), Some(0));
    assert_eq!(registered.slot_offset(1025), Some(registered.extent_bytes + registered.slot_stride));
    assert_eq!(registered.slot_offset(16 * 1024), None);
    assert_eq!(registered.slot_offset(u32::MAX), None);
}

proptest! {
    #[test]
    fn garbage_never_panics(garbage in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = ToNode::decode(&garbage);
        let _ = ToEngine::decode(&garbage);
    }

    /// Damaged golden messages reach deeper than pure garbage does.
    #[test]
    fn damaged_messages_never_panic(which: prop::sample::Index, at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
        let golden = [golden::to_node(), golden::to_node_of_version_3()].concat();
        let mut body = golden[which.index(golden.len())].encode();
        let position = at.index(body.len());
        body[position] = byte;
        body.truncate(cut.index(body.len() + 1));
        let _ = ToNode::decode(&body);
        let golden = [golden::to_engine(), golden::to_engine_of_version_3()].concat();
        let mut body = golden[which.index(golden.len())].encode();
        let position = at.index(body.len());
        body[position] = byte;
        let _ = ToEngine::decode(&body);
    }

    #[test]
    fn lookups_come_back(
        id: u64,
        keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..=64), 0..40),
        step in 1_u32..100,
        tag: Option<u128>,
        prompt_tokens: Option<u32>,
        request in prop::option::of(".{0,100}"),
    ) {
        let end_tokens = (1..=keys.len() as u32).map(|i| i * step).collect();
        let keys = keys.iter().map(|bytes| BlockKey::new(bytes).unwrap()).collect();
        let message: ToNode = Lookup { id, keys, end_tokens, request, tag: tag.map(Tag), prompt_tokens }.into();
        prop_assert_eq!(ToNode::decode(&message.encode()), Ok(message));
    }
}

/// Keys of every length are equal, ordered and hashed by their bytes, wherever these lie.
#[test]
fn keys_are_their_bytes() {
    use std::hash::BuildHasher;
    let hasher = std::hash::RandomState::new();
    let keys: Vec<BlockKey> =
        (1..=64_u8).map(|length| BlockKey::new(&vec![7; usize::from(length)]).unwrap()).collect();
    assert!(BlockKey::new(&[]).is_none() && BlockKey::new(&[0; 65]).is_none());
    for pair in keys.windows(2) {
        assert!(pair[0] < pair[1] && pair[0] != pair[1]);
        assert_ne!(hasher.hash_one(&pair[0]), hasher.hash_one(&pair[1]));
    }
    for key in keys {
        let again = BlockKey::new(key.as_bytes()).unwrap();
        assert_eq!((&again, hasher.hash_one(&again)), (&key, hasher.hash_one(&key)));
    }
}
