//! What an engine and a proxy get in the ordinary course, and at the limits.

use larder_protocol::code::{ErrorCode, MissReason, RefusedCode, RejectCode};
use larder_protocol::control::{StageReason, StageRequest};
use larder_protocol::message::Miss;

use super::*;

const CHUNK: u64 = 128 << 10;

fn error_code(message: &ToEngine) -> ErrorCode {
    match message {
        ToEngine::ErrorAnswer(error) => error.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_committed_is_leased_and_reads_back() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    assert_eq!(world.store_all(engine, 0..5), [Verdict::Accepted; 5]);
    let lease = world.lease(engine, 0..8);
    assert_eq!(lease.slots.len(), 5, "the leading held chunks and no more");
    for (number, (slot, generation)) in (0..).zip(lease.slots.iter().zip(&lease.generations)) {
        assert_eq!(world.read(*slot, *generation).unwrap().content, number);
    }
    assert_eq!(
        world.store_all(engine, 3..7),
        [Verdict::Held, Verdict::Held, Verdict::Accepted, Verdict::Accepted]
    );
}

#[test]
fn a_hole_ends_the_lease() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..2);
    world.store_all(engine, 3..5);
    assert_eq!(world.lease(engine, 0..5).slots.len(), 2);
    assert_eq!(world.lookup(engine, 2..5), Miss { id: 5, reason: MissReason::NotHeld }.into());
}

#[test]
fn other_weights_never_share() {
    let mut world = World::new(settings());
    let one = world.engine(1, &register(CHUNK, 1));
    let two = world.engine(2, &register(CHUNK, 2));
    world.store_all(one, 0..3);
    assert_eq!(world.lookup(two, 0..3), Miss { id: 5, reason: MissReason::NotHeld }.into());
    let three = world.engine(3, &register(CHUNK, 1));
    assert_eq!(world.lease(three, 0..3).slots.len(), 3, "equal engines do share");
}

#[test]
fn a_new_epoch_never_finds_the_old() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..3);
    let lease = world.lease(engine, 0..3);
    world.say(engine, larder_protocol::message::Epoch { id: 3, epoch: 1 });
    assert!(matches!(world.lookup(engine, 0..3), ToEngine::Miss(_)));
    world.load(engine, lease.lease, 3);
    assert_eq!(error_code(world.last(engine)), ErrorCode::NoLease, "unstarted leases ended");
}

#[test]
fn a_damaged_chunk_is_quarantined_and_missed() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..4);
    let damage = Damage::Flip { key: Some(key(2)), nth: 0, byte: 0, bit: 6 };
    world.step(Input::Damage { ticket: Ticket(1), damage });
    assert_eq!(world.lease(engine, 0..4).slots.len(), 2, "cut before the bad chunk");
    let stats = world.store.stats();
    assert_eq!((stats.counts.corrupt_chunks, stats.quarantined_slots, stats.chunks), (1, 1, 3));
    assert_eq!(world.lookup(engine, 2..3), Miss { id: 5, reason: MissReason::NotHeld }.into());
    assert_eq!(world.store_all(engine, 2..3), [Verdict::Accepted], "and can be stored anew, elsewhere");
    assert_eq!(world.lease(engine, 0..4).slots.len(), 4);
}

/// The negative control of the test above: without verification the damage is handed out.
#[test]
fn without_verification_damage_is_handed_out() {
    let mut world = World::new(Settings { verify: Verify::Off, ..settings() });
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..4);
    let damage = Damage::Flip { key: None, nth: 2, byte: 0, bit: 6 };
    world.step(Input::Damage { ticket: Ticket(1), damage });
    let lease = world.lease(engine, 0..4);
    assert!(world.read(lease.slots[2], lease.generations[2]).unwrap().damaged);
    assert_eq!(world.store.stats().counts.corrupt_chunks, 0);
}

#[test]
fn a_lease_held_before_the_damage_was_found_fails_its_generation_check() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..2);
    let old = world.lease(engine, 0..2);
    world.load(engine, old.lease, 2);
    world.step(Input::Damage {
        ticket: Ticket(1),
        damage: Damage::Flip { key: None, nth: 1, byte: 0, bit: 0 },
    });
    assert_eq!(world.lease(engine, 0..2).slots.len(), 1);
    assert_eq!(world.read(old.slots[1], old.generations[1]), None);
    assert!(world.read(old.slots[0], old.generations[0]).is_some());
}

/// Two leases verify the same chunk; one finds it bad after the other has read it and found it good.
#[test]
fn a_chunk_quarantined_while_another_verifies_it_is_not_leased() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..4);
    let lookup = Lookup {
        id: 5,
        keys: keys(0..4),
        end_tokens: vec![1, 2, 3, 4],
        request: None,
        tag: None,
        prompt_tokens: None,
    };
    world.say(engine, lookup.clone());
    world.say(engine, lookup);
    let [Job::Verify { verify: one, .. }, Job::Verify { verify: two, .. }] = world.jobs[..] else {
        panic!("two verifications expected");
    };
    world.jobs.clear();
    let bad = vec![Finding::Good, Finding::Good, Finding::Bad, Finding::Good];
    world.step(Input::Verified { verify: one, found: bad });
    world.step(Input::Verified { verify: two, found: vec![Finding::Good; 4] });
    let ToEngine::Leased(lease) = world.last(engine) else { panic!("{:?}", world.last(engine)) };
    assert_eq!(lease.slots.len(), 2);
    assert_eq!(world.store.stats().counts.corrupt_chunks, 1);
}

#[test]
fn a_new_epoch_ends_what_is_being_verified() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..2);
    let lookup = Lookup {
        id: 5,
        keys: keys(0..2),
        end_tokens: vec![1, 2],
        request: None,
        tag: None,
        prompt_tokens: None,
    };
    world.say(engine, lookup);
    world.say(engine, larder_protocol::message::Epoch { id: 3, epoch: 1 });
    world.work_all();
    assert!(matches!(world.last(engine), ToEngine::Miss(_)), "{:?}", world.last(engine));
    assert_eq!(world.store.stats().pinned_bytes, 0);
}

/// No checksum sees two chunks with exchanged names: the control that only comparing answers can notice.
#[test]
fn swapped_names_pass_every_check() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..4);
    world.step(Input::Damage { ticket: Ticket(1), damage: Damage::Swap { first: 0, second: 1 } });
    let lease = world.lease(engine, 0..4);
    assert_eq!(world.read(lease.slots[0], lease.generations[0]).unwrap().content, 1);
}

#[test]
fn a_chunk_verified_just_now_is_not_read_again() {
    let mut world = World::new(Settings { verify_fresh: Duration::from_secs(1), ..settings() });
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..3);
    let first = world.lease(engine, 0..3);
    let lookup = Lookup {
        id: 5,
        keys: keys(0..3),
        end_tokens: vec![1, 2, 3],
        request: None,
        tag: None,
        prompt_tokens: None,
    };
    world.say(engine, lookup.clone());
    assert!(world.jobs.is_empty(), "fresh");
    // A load that failed makes its chunk suspect, however fresh.
    world.load(engine, first.lease, 3);
    world.say(engine, Complete { id: 7, lease: first.lease, ok: false, failed: Some(vec![1]) });
    world.say(engine, lookup.clone());
    assert!(matches!(&world.jobs[..], [Job::Verify { checks, .. }] if checks.len() == 1));
    world.work_all();
    world.later(2);
    world.say(engine, lookup);
    assert!(
        matches!(&world.jobs[..], [Job::Verify { checks, .. }] if checks.len() == 3),
        "not fresh any more"
    );
}

use super::world::Job;

#[test]
fn what_was_not_verified_in_time_is_not_leased() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..3);
    let lookup = Lookup {
        id: 5,
        keys: keys(0..3),
        end_tokens: vec![1, 2, 3],
        request: None,
        tag: None,
        prompt_tokens: None,
    };
    for (found, leased) in [
        (vec![Finding::Good, Finding::Skipped, Finding::Skipped], Some(1)),
        (vec![Finding::Skipped, Finding::Good, Finding::Good], None),
    ] {
        world.say(engine, lookup.clone());
        let Some(Job::Verify { verify, .. }) = world.jobs.pop() else { panic!("verification expected") };
        world.step(Input::Verified { verify, found });
        match (world.last(engine), leased) {
            (ToEngine::Leased(lease), Some(count)) => assert_eq!(lease.slots.len(), count),
            (ToEngine::Miss(miss), None) => assert_eq!(miss.reason, MissReason::Deadline),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_oldest_chunk_goes_first_and_the_beginning_of_a_prompt_last() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    for batch in 0..4 {
        world.store_all(engine, batch * 8..batch * 8 + 8);
    }
    assert_eq!(world.store.stats().chunks, 32, "four extents of eight");
    let touched = world.lease(engine, 0..8);
    world.release(engine, touched.lease);
    world.store_all(engine, 100..103);
    // The batch 8..16 is now the oldest, and of it the end.
    assert_eq!(world.lease(engine, 8..16).slots.len(), 5);
    assert_eq!(world.lease(engine, 0..8).slots.len(), 8);
}

#[test]
fn what_another_chunk_continues_outlasts_it() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..8);
    world.later(1);
    for batch in 1..4 {
        world.store_all(engine, batch * 8..batch * 8 + 8);
    }
    // Alone, the end of the oldest prompt is asked for more than anything else: what it needs stays with it.
    let touched = world.lease(engine, 7..8);
    world.release(engine, touched.lease);
    for first in [100, 108, 116] {
        world.store_all(engine, first..first + 8);
    }
    let whole = world.lease(engine, 0..8);
    assert_eq!(whole.slots.len(), 8, "not a hole in it");
    world.release(engine, whole.lease);
    assert_eq!(world.lease(engine, 100..124).slots.len(), 24, "and the rest went for those that came");
}

#[test]
fn a_lookup_teaches_who_continues_whom() {
    for taught in [true, false] {
        let mut world = World::new(settings());
        let engine = world.engine(1, &register(CHUNK, 1));
        // The two halves of one prompt in commits of their own, the end first.
        world.store_all(engine, 4..8);
        world.store_all(engine, 0..4);
        if taught {
            let lease = world.lease(engine, 0..8);
            world.release(engine, lease.lease);
        }
        world.later(1);
        for _ in 0..4 {
            let lease = world.lease(engine, 7..8);
            world.release(engine, lease.lease);
        }
        for first in [100, 107, 114, 121] {
            world.store_all(engine, first..first + 7);
        }
        let left = match world.lookup(engine, 0..8) {
            ToEngine::Leased(lease) => lease.slots.len(),
            _ => 0,
        };
        assert_eq!(left, if taught { 8 } else { 0 });
    }
}

#[test]
fn what_is_asked_for_often_outlasts_what_came_since_until_nobody_asks() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    let fill = |world: &mut World, first: u64| {
        for batch in 0..4 {
            world.store_all(engine, first + batch * 8..first + batch * 8 + 8);
        }
    };
    world.store_all(engine, 0..4);
    for _ in 0..3 {
        let lease = world.lease(engine, 0..4);
        world.release(engine, lease.lease);
    }
    world.later(60);
    fill(&mut world, 100);
    assert_eq!(world.store.stats().chunks, 32);
    let still = world.lease(engine, 0..4);
    assert_eq!(still.slots.len(), 4, "a flood used once passes by");
    world.release(engine, still.lease);
    world.later(3600);
    fill(&mut world, 200);
    assert!(matches!(world.lookup(engine, 0..4), ToEngine::Miss(_)), "an hour later it is forgotten");
}

#[test]
fn leased_chunks_are_never_evicted_and_stores_are_refused_instead() {
    let mut world = World::new(Settings { pinned_bytes_max: 4 * MIB, ..settings() });
    let engine = world.engine(1, &register(CHUNK, 1));
    for batch in 0..4 {
        world.store_all(engine, batch * 8..batch * 8 + 8);
    }
    let lease = world.lease(engine, 0..32);
    assert_eq!(lease.slots.len(), 32);
    assert_eq!(world.store_all(engine, 100..102), [Verdict::Refused; 2]);
    world.release(engine, lease.lease);
    assert_eq!(world.store_all(engine, 100..102), [Verdict::Accepted; 2]);
}

#[test]
fn a_lease_is_cut_at_the_pinned_limit() {
    let mut world = World::new(Settings { pinned_bytes_max: 3 * CHUNK, ..settings() });
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..8);
    assert_eq!(world.lease(engine, 0..8).slots.len(), 3);
    assert_eq!(world.lease(engine, 0..2).slots.len(), 2, "what is pinned already costs nothing");
    assert_eq!(world.lookup(engine, 5..8), Miss { id: 5, reason: MissReason::Busy }.into());
}

#[test]
fn layout_classes_trade_extents() {
    let mut world = World::new(settings());
    let small = world.engine(1, &register(CHUNK, 1));
    let large = world.engine(2, &register(4 * CHUNK, 2));
    for batch in 0..4 {
        world.store_all(small, batch * 8..batch * 8 + 8);
    }
    assert_eq!(world.store_all(large, 500..502), [Verdict::Accepted; 2], "a cold extent changes hands");
    assert_eq!(world.lease(small, 24..32).slots.len(), 8, "the coldest one");
    assert!(matches!(world.lookup(small, 0..8), ToEngine::Miss(_)));
    // And back again: a large chunk saves as many tokens and takes four times the bytes.
    world.store_all(small, 600..608);
    assert_eq!(world.store.stats().chunks, 8 * 4);
    assert!(matches!(world.lookup(large, 500..502), ToEngine::Miss(_)));
    assert_eq!(world.lease(small, 24..32).slots.len(), 8);
}

#[test]
fn an_extent_in_use_does_not_change_hands() {
    let mut world = World::new(Settings { extents: 1, ..settings() });
    let small = world.engine(1, &register(CHUNK, 1));
    let large = world.engine(2, &register(4 * CHUNK, 2));
    world.store_all(small, 0..8);
    let lease = world.lease(small, 7..8);
    assert_eq!(world.store_all(large, 500..501), [Verdict::Refused], "one of its slots is leased");
    world.release(small, lease.lease);
    let damage = Damage::Flip { key: Some(key(3)), nth: 0, byte: 0, bit: 0 };
    world.step(Input::Damage { ticket: Ticket(1), damage });
    assert!(matches!(world.lookup(small, 3..4), ToEngine::Miss(_)));
    assert_eq!(world.store_all(large, 500..501), [Verdict::Refused], "one of its slots is quarantined");
}

#[test]
fn an_extent_with_something_recent_stays_with_its_class() {
    let mut world = World::new(Settings { extents: 2, ..settings() });
    let small = world.engine(1, &register(CHUNK, 1));
    let large = world.engine(2, &register(4 * CHUNK, 2));
    world.store_all(small, 0..8);
    world.store_all(large, 500..502);
    let touched = world.lease(small, 7..8);
    world.release(small, touched.lease);
    assert_eq!(world.store_all(large, 502..503), [Verdict::Accepted]);
    assert_eq!(world.lease(small, 0..8).slots.len(), 8, "its coldest is colder, but not all of it");
    assert!(matches!(world.lookup(large, 501..502), ToEngine::Miss(_)), "so the class paid for itself");
}

#[test]
fn commits_of_slots_never_to_be_had_store_nothing() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    let commit = |slots: Vec<u32>| Commit {
        id: 4,
        keys: keys(0..2),
        end_tokens: vec![1, 2],
        region_slots: slots,
        request: None,
        tag: None,
        prompt_tokens: None,
        parent: None,
    };
    for slots in [vec![0, 8], vec![1, 1], vec![u32::MAX, 0]] {
        world.say(engine, commit(slots));
        assert_eq!(error_code(world.last(engine)), ErrorCode::BadRegionSlot);
    }
    assert!(world.jobs.is_empty());
    world.commit(engine, 0..2, None);
    world.say(engine, commit(vec![1, 2]));
    assert_eq!(error_code(world.last(engine)), ErrorCode::BadRegionSlot, "slot 1 is under a running commit");
    world.work_all();
    assert_eq!(world.store_all(engine, 0..2), [Verdict::Held; 2]);
}

#[test]
fn hellos_and_registers_that_cannot_be_served() {
    let mut world = World::new(settings());
    world.engine(1, &register(CHUNK, 1));
    let hello = |versions: Vec<u16>, engine: &str, rank| Hello {
        versions,
        role: Role::Worker,
        rank,
        engine: engine.into(),
        endpoint: None,
        software: None,
    };
    for (n, hello, code) in [
        (10, hello(vec![4], "x", 0), RejectCode::Version),
        (11, hello(vec![1], "e1", 0), RejectCode::EngineInUse),
        (12, hello(vec![1], "", 0), RejectCode::BadHello),
        (13, hello(vec![1], "x", u32::MAX), RejectCode::BadHello),
    ] {
        world.step(Input::Accepted { connection: ConnectionId(n), watched: true });
        world.say(ConnectionId(n), hello);
        let rejected = |(to, message): &(ConnectionId, ToEngine)| {
            *to == ConnectionId(n) && matches!(message, ToEngine::Reject(reject) if reject.code == code)
        };
        assert!(world.said.iter().any(rejected), "{code:?}");
        assert!(world.closed.contains(&ConnectionId(n)));
    }
    for (n, register, code) in [
        (20, Register { hash: "xxhash_cbor".into(), ..register(CHUNK, 1) }, RefusedCode::WeakHash),
        (21, register(2 * MIB, 1), RefusedCode::ChunkTooLarge),
        (22, register(0, 1), RefusedCode::BadLayout),
        (23, Register { world: 0, ..register(CHUNK, 1) }, RefusedCode::BadLayout),
        (
            24,
            Register { tokens_per_block: u32::MAX, blocks_per_chunk: 9, ..register(1, 1) },
            RefusedCode::BadLayout,
        ),
        (25, Register { part_bytes: u64::MAX, world: 2, ..register(1, 1) }, RefusedCode::BadLayout),
    ] {
        world.step(Input::Accepted { connection: ConnectionId(n), watched: true });
        world.say(ConnectionId(n), hello(vec![1], &format!("r{n}"), 0));
        world.say(ConnectionId(n), register);
        let last = world.last(ConnectionId(n));
        assert!(matches!(last, ToEngine::Refused(refused) if refused.code == code), "{last:?}");
        world.step(Input::Closed { connection: ConnectionId(n) });
    }
}

#[test]
fn every_session_has_a_name_of_its_own() {
    let names = |node| {
        let mut world = World::new(Settings { node, ..settings() });
        for n in [1, 2] {
            world.engine(n, &register(CHUNK, 1));
        }
        // The first engine loses its scheduler and comes back to the same node.
        world.step(Input::Closed { connection: ConnectionId(2) });
        world.engine(1, &register(CHUNK, 1));
        let told = world.said.iter().filter_map(|(_, message)| match message {
            ToEngine::Registered(registered) => registered.session,
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    let (one, other) = (names(NodeId(1 << 100)), names(NodeId(2 << 100)));
    for of_two in one.chunks(2) {
        assert_eq!(of_two[0], of_two[1], "alike on both connections");
    }
    let all: std::collections::BTreeSet<_> = one.iter().chain(&other).collect();
    assert_eq!((one.len(), all.len()), (6, 6), "three sessions at two nodes");
}

#[test]
fn a_session_serves_only_when_whole_and_alike() {
    let mut world = World::new(settings());
    let two = Register { world: 2, ..register(CHUNK / 2, 1) };
    let scheduler = world.engine(1, &two);
    assert_eq!(world.lookup(scheduler, 0..1), Miss { id: 5, reason: MissReason::NotReady }.into());
    let late = ConnectionId(50);
    world.step(Input::Accepted { connection: late, watched: true });
    let hello = Hello {
        versions: vec![1],
        role: Role::Worker,
        rank: 1,
        engine: "e1".into(),
        endpoint: None,
        software: None,
    };
    world.say(late, hello);
    world.say(late, Register { dtype: "bfloat16".into(), ..two.clone() });
    assert!(matches!(world.last(late), ToEngine::Refused(refused) if refused.code == RefusedCode::Mismatch));
    world.say(late, two);
    assert_eq!(world.store_all(scheduler, 0..2), [Verdict::Accepted; 2]);
}

#[test]
fn wrong_states_and_roles_end_the_connection() {
    let mut world = World::new(settings());
    let scheduler = world.engine(1, &register(CHUNK, 1));
    world.store_all(scheduler, 0..1);
    // A worker may not ask.
    let worker = ConnectionId(3);
    world.say(worker, Release { id: 1, lease: LeaseId(1) });
    assert!(
        world.closed.contains(&worker) && world.closed.contains(&scheduler),
        "and the session goes with it"
    );
    // Nor may anyone before hello, or say hello twice.
    world.step(Input::Accepted { connection: ConnectionId(70), watched: true });
    world.say(ConnectionId(70), Release { id: 1, lease: LeaseId(1) });
    assert!(world.closed.contains(&ConnectionId(70)));
    let again = world.engine(9, &register(CHUNK, 1));
    let hello = Hello {
        versions: vec![1],
        role: Role::Scheduler,
        rank: 0,
        engine: "e9".into(),
        endpoint: None,
        software: None,
    };
    world.say(again, hello);
    assert!(world.closed.contains(&again));
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let mut world = World::new(settings());
    world.step(Input::Accepted { connection: ConnectionId(1), watched: true });
    world.later(4);
    assert!(world.closed.is_empty());
    world.later(1);
    assert_eq!(world.closed, [ConnectionId(1)]);
}

fn stage_request(tag: u128, runs: std::ops::Range<u64>, engine: &str) -> StageRequest {
    StageRequest {
        tag: Some(Tag(tag)),
        prompt_bytes: (runs.end - runs.start) * 512 + 100,
        chain: runs.map(ChainPoint).collect(),
        run_bytes: 512,
        engine: Some(engine.into()),
        deadline_ms: Some(50),
        max_bytes: None,
        tenant: None,
    }
}

#[test]
fn a_prompt_computed_by_one_engine_is_staged_for_another() {
    let mut world = World::new(settings());
    let one = world.engine(1, &register(CHUNK, 1));
    let two = world.engine(2, &register(CHUNK, 1));
    let stage = |world: &mut World, n: u64, request: StageRequest| {
        let fresh = world.fresh();
        world.step(Input::Stage { ticket: Ticket(n), request, fresh });
        world.work_all();
        let (ticket, answer) = world.answers.last().unwrap().clone();
        assert_eq!(ticket, Ticket(n));
        answer
    };
    // First turn: nothing known, but the chain is remembered under its tag.
    let answer = stage(&mut world, 1, stage_request(77, 0..20, "http://e1"));
    assert_eq!((answer.lease, answer.reason), (None, StageReason::NoRecipe));
    let lookup = Lookup {
        id: 5,
        keys: keys(0..10),
        end_tokens: (1..=10).map(|index| index * 32).collect(),
        request: None,
        tag: Some(Tag(77)),
        prompt_tokens: Some(330),
    };
    world.say(one, lookup);
    world.store_all(one, 0..8);
    world.store_all(one, 8..10);
    // The second turn extends the prompt and goes to the other engine.
    let answer = stage(&mut world, 2, stage_request(78, 0..30, "http://e2"));
    assert_eq!(answer.reason, StageReason::Staged);
    // 20 runs of 512 bytes at 10,340 bytes for 330 tokens, less the margin: 306 tokens, 9 chunks.
    assert_eq!((answer.chunks, answer.tokens_ready, answer.bytes), (9, 288, 9 * CHUNK));
    let ToEngine::Grant(grant) = world.last(two).clone() else { panic!("{:?}", world.last(two)) };
    assert_eq!((grant.tag, Some(grant.lease)), (Tag(78), answer.lease));
    assert_eq!(grant.keys, keys(0..9));
    for (number, (slot, generation)) in (0..).zip(grant.slots.iter().zip(&grant.generations)) {
        assert_eq!(world.read(*slot, *generation).unwrap().content, number);
    }
    // The lease is the second engine's alone.
    world.load(one, grant.lease, 1);
    assert_eq!(error_code(world.last(one)), ErrorCode::NoLease);
    world.load(two, grant.lease, 9);
    assert!(matches!(world.last(two), ToEngine::Okay(_)));
    // Limits and names.
    let cut = StageRequest { max_bytes: Some(2 * CHUNK), ..stage_request(79, 0..30, "http://e2") };
    assert_eq!(stage(&mut world, 3, cut).reason, StageReason::Cut);
    assert_eq!(stage(&mut world, 4, stage_request(80, 0..30, "nobody")).reason, StageReason::NoEngine);
    let any = StageRequest { engine: None, ..stage_request(81, 0..30, "") };
    assert_eq!(stage(&mut world, 5, any).reason, StageReason::AmbiguousEngine);
    world.step(Input::Probe { ticket: Ticket(6), request: stage_request(82, 0..30, "http://e1") });
    let (_, probe) = world.answers.last().unwrap();
    assert_eq!((probe.lease, probe.chunks, probe.reason), (None, 9, StageReason::Staged));
}

#[test]
fn staged_and_unused_is_counted() {
    let mut world = World::new(settings());
    let one = world.engine(1, &register(CHUNK, 1));
    world.store_all(one, 0..4);
    let lookup = Lookup {
        id: 5,
        keys: keys(0..4),
        end_tokens: vec![32, 64, 96, 128],
        request: None,
        tag: Some(Tag(1)),
        prompt_tokens: Some(130),
    };
    world.say(one, lookup);
    let fresh = world.fresh();
    world.step(Input::Stage { ticket: Ticket(1), request: stage_request(1, 0..20, "e1"), fresh });
    world.work_all();
    let staged = world.store.stats().counts.staged_tokens;
    assert!(staged > 0);
    world.later(31);
    assert_eq!(world.store.stats().counts.unused_staged_tokens, staged);
    assert_eq!(world.store.stats().pinned_bytes, 0);
}
