//! What the store does for its disk tier.

use larder_protocol::code::MissReason;
use larder_protocol::control::{StageReason, StageRequest};
use larder_protocol::message::Miss;
use larder_tiering::disk::Found;

use super::*;

const CHUNK: u64 = 128 << 10;

/// Everything in memory is worth less than this, soon.
fn flood(world: &mut World, engine: ConnectionId) {
    // A use counts half after ten minutes, so one of these is worth four of those before.
    world.later(1200);
    for first in (500..556).step_by(8) {
        world.store_all(engine, first..first + 8);
    }
}

/// A world in which chunks 0..4 are on disk and nowhere else.
fn demoted(settings: Settings) -> (World, ConnectionId) {
    let mut world = World::with_disk(settings, 1);
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..4);
    let lease = world.lease(engine, 0..4);
    world.later(1);
    world.work_all();
    world.release(engine, lease.lease);
    assert_eq!(world.store.stats().disk.counts.written_chunks, 4);
    let other = world.engine(2, &register(CHUNK, 2));
    flood(&mut world, other);
    assert!((0..4).all(|number| !held(&world, engine, number)), "all of it has left");
    (world, engine)
}

fn name(world: &World, engine: ConnectionId, number: u64) -> ChunkName {
    let layout = world.store.sessions[&world.session(engine)].layout.as_ref().unwrap();
    ChunkName { namespace: layout.namespace, key: key(number) }
}

fn held(world: &World, engine: ConnectionId, number: u64) -> bool {
    world.store.chunks.contains_key(&name(world, engine, number))
}

#[test]
fn a_lookup_of_what_is_on_disk_is_pending_and_then_leased() {
    let (mut world, engine) = demoted(settings());
    world.say(engine, lookup(0..6));
    let ToEngine::Pending(pending) = world.last(engine).clone() else { panic!("{:?}", world.last(engine)) };
    assert_eq!((pending.id, pending.chunks, pending.bytes), (5, 4, 4 * CHUNK));
    world.say(engine, lookup(0..6));
    assert!(matches!(world.last(engine), ToEngine::Pending(pending) if pending.chunks == 4), "still");
    assert_eq!(world.store.stats().disk.loads, 4, "and nothing is loaded twice");
    world.work_all();
    let lease = world.lease(engine, 0..6);
    assert_eq!(lease.slots.len(), 4);
    for (number, (slot, generation)) in (0..).zip(lease.slots.iter().zip(&lease.generations)) {
        assert_eq!(world.read(*slot, *generation).unwrap().content, number);
    }
}

fn lookup(numbers: std::ops::Range<u64>) -> Lookup {
    let ends = (1..=(numbers.end - numbers.start) as u32).map(|index| index * 32).collect();
    Lookup { id: 5, keys: keys(numbers), end_tokens: ends, request: None, tag: None, prompt_tokens: None }
}

#[test]
fn damage_on_disk_is_missed_and_what_continues_it_goes_too() {
    let (mut world, engine) = demoted(settings());
    let damaged = world.disk.values_mut().find(|bytes| bytes.content == 2).unwrap();
    damaged.damaged = true;
    assert!(matches!(world.lookup(engine, 0..4), ToEngine::Pending(_)));
    let stats = world.store.stats();
    assert_eq!((stats.disk.counts.damaged_chunks, stats.writing_slots), (1, 0));
    assert_eq!(world.lease(engine, 0..4).slots.len(), 2);
    assert_eq!(world.store.stats().disk.chunks, 2);
}

#[test]
fn a_disk_that_cannot_be_read_is_a_miss() {
    let (mut world, engine) = demoted(settings());
    world.disk.clear();
    assert!(matches!(world.lookup(engine, 0..4), ToEngine::Pending(_)));
    assert_eq!(world.lookup(engine, 0..4), Miss { id: 5, reason: MissReason::NotHeld }.into());
    assert_eq!(world.store.stats().disk.counts.failed_loads, 4);
}

fn stage(world: &mut World, deadline_ms: Option<u32>) {
    let request = StageRequest {
        tag: Some(Tag(9)),
        chain: (0..4).map(ChainPoint).collect(),
        run_bytes: 128,
        prompt_bytes: 512,
        engine: Some("e1".into()),
        deadline_ms,
        max_bytes: None,
        tenant: None,
    };
    let fresh = world.fresh();
    world.step(Input::Stage { ticket: Ticket(1), request, fresh });
}

/// Pairs the chain with the keys of chunks 0..4, so that it can be staged.
fn with_recipe(settings: Settings) -> (World, ConnectionId) {
    let (mut world, engine) = demoted(settings);
    stage(&mut world, None);
    let lookup = Lookup { tag: Some(Tag(9)), prompt_tokens: Some(4 * 32), ..lookup(0..4) };
    // By its keys alone: nothing comes up.
    let namespace = name(&world, engine, 0).namespace;
    let keys = crate::recipe::PromptKeys {
        namespace,
        tokens_per_chunk: 32,
        keys: &lookup.keys,
        end_tokens: &lookup.end_tokens,
        prompt_tokens: lookup.prompt_tokens,
    };
    world.store.recipes.note_keys(Tag(9), &keys);
    world.answers.clear();
    (world, engine)
}

#[test]
fn a_stage_call_waits_for_the_disk_until_its_time_is_over() {
    let (mut world, _) = with_recipe(settings());
    stage(&mut world, None);
    assert!(world.answers.is_empty(), "it waits");
    world.work_all();
    let answer = world.answers.pop().unwrap().1;
    assert!(answer.chunks >= 3 && answer.lease.is_some(), "{answer:?}");
    let (mut world, _) = with_recipe(settings());
    stage(&mut world, Some(50));
    // One chunk has come up when the time is over.
    let load = world.jobs.iter().position(|job| matches!(job, world::Job::Disk { .. })).unwrap();
    world.work(load);
    world.later(1);
    world.work_all();
    let answer = world.answers.pop().unwrap().1;
    assert_eq!((answer.chunks, answer.reason), (1, StageReason::Partial));
}

#[test]
fn a_stage_call_whose_engine_is_lost_meanwhile_is_told() {
    let (mut world, engine) = with_recipe(settings());
    stage(&mut world, None);
    world.step(Input::Closed { connection: engine });
    world.work_all();
    assert_eq!(world.answers.pop().unwrap().1.reason, StageReason::NoEngine);
}

#[test]
fn damage_in_memory_is_found_by_the_write_and_quarantined() {
    let mut world = World::with_disk(settings(), 1);
    let engine = world.engine(1, &register(CHUNK, 1));
    world.store_all(engine, 0..4);
    world.lease(engine, 0..4);
    let damage = Damage::Flip { key: Some(key(1)), nth: 0, byte: 0, bit: 6 };
    world.step(Input::Damage { ticket: Ticket(1), damage });
    world.later(1);
    world.work_all();
    let stats = world.store.stats();
    assert_eq!((stats.counts.corrupt_chunks, stats.quarantined_slots), (1, 1));
    assert_eq!(stats.disk.counts.failed_writes, 1);
    assert_eq!(stats.disk.chunks, 1, "what continues it has no business there");
}

/// A prefill of several steps is several commits, all but the first of which continue what was committed before.
#[test]
fn commits_that_continue_each_other_go_to_disk_whole() {
    for (parents, written) in
        [([Some(3), Some(5)], 8), ([None, None], 4), ([Some(3), None], 6), ([None, Some(5)], 4)]
    {
        let mut world = World::with_disk(settings(), 0);
        let engine = world.engine(1, &register(CHUNK, 1));
        for (numbers, parent) in [0..4, 4..6, 6..8].into_iter().zip([None].into_iter().chain(parents)) {
            world.commit_after(engine, numbers, None, parent);
            world.work_all();
            world.later(1);
            world.work_all();
        }
        assert_eq!(world.store.stats().disk.counts.written_chunks, written, "{parents:?}");
    }
}

/// A chunk that was evicted before its second use is remembered, and goes to disk when it has come often enough.
#[test]
fn what_comes_again_and_again_reaches_the_disk_without_a_lease() {
    let mut world = World::with_disk(settings(), 2);
    let engine = world.engine(1, &register(CHUNK, 1));
    let other = world.engine(2, &register(CHUNK, 2));
    for round in 0..3 {
        assert_eq!(world.store_all(engine, 0..4), [Verdict::Accepted; 4]);
        world.later(1);
        world.work_all();
        let written = world.store.stats().disk.counts.written_chunks;
        assert_eq!(written, if round < 2 { 0 } else { 4 }, "round {round}");
        flood(&mut world, other);
    }
}

#[test]
fn everything_is_forgotten_but_what_is_leased() {
    let (mut world, engine) = demoted(settings());
    assert!(matches!(world.lookup(engine, 0..4), ToEngine::Pending(_)));
    let lease = world.lease(engine, 0..2);
    world.step(Input::Clear { ticket: Ticket(1) });
    let (cleared, kept) = world.cleared[0];
    assert!(cleared > 0 && kept == 2, "{cleared} {kept}");
    assert_eq!(world.store.stats().disk.chunks, 0);
    world.release(engine, lease.lease);
    world.step(Input::Clear { ticket: Ticket(2) });
    assert_eq!(world.lookup(engine, 0..4), Miss { id: 5, reason: MissReason::NotHeld }.into());
    assert_eq!(world.store.stats().chunks, 0);
}

/// A chunk that was coming up when everything was forgotten does not come back.
#[test]
fn what_is_coming_up_is_forgotten_too() {
    let (mut world, engine) = demoted(settings());
    world.say(engine, lookup(0..4));
    world.step(Input::Clear { ticket: Ticket(1) });
    world.work_all();
    assert!((0..4).all(|number| !held(&world, engine, number)));
    assert_eq!(world.store.stats().writing_slots, 0);
}

#[test]
fn a_scrub_reads_the_tier_at_its_rate_and_drops_what_has_rotted() {
    let settings = Settings { scrub_bytes_per_s: 2 * CHUNK, ..settings() };
    let mut world = World::with_disk(settings, 0);
    let engine = world.engine(1, &register(CHUNK, 1));
    // Two segments are full, which a scrub reads.
    world.store_all(engine, 0..8);
    world.store_all(engine, 8..15);
    for _ in 0..4 {
        world.later(60);
        world.work_all();
        world.lease(engine, 0..15);
    }
    let sealed = world.store.stats().disk.segments - 1;
    assert!(sealed > 0);
    world.scrubs.clear();
    world.later(7200);
    let (name, at, chunk) = world.scrubs.pop().expect("it is time to scrub");
    world.now += Duration::from_millis(100);
    world.step(Input::Tick);
    assert!(world.scrubs.is_empty(), "one at a time");
    world.step(Input::Disk(DiskInput::Scrubbed { name, at, outcome: Ok(()) }));
    world.step(Input::Tick);
    assert!(world.scrubs.is_empty(), "not before its time");
    world.later(1);
    let (name, next, _) = world.scrubs.pop().expect("it is time for the next");
    assert!(next > at && chunk.bytes == CHUNK);
    let before = world.store.stats().disk.chunks;
    let outcome = Err(LoadFault::Damaged);
    world.step(Input::Disk(DiskInput::Scrubbed { name, at: next, outcome }));
    let stats = world.store.stats().disk;
    assert!(stats.chunks < before && stats.counts.damaged_chunks == 1);
}

/// A node that has just started looks at its disk before it knows what is there.
#[test]
fn a_scrub_waits_for_what_earlier_runs_left() {
    let settings = Settings { scrub_bytes_per_s: 2 * CHUNK, ..settings() };
    let mut world = World::with_earlier(settings, 1, &[(1, MIB)]);
    world.step(Input::Tick);
    assert!(world.scrubs.is_empty(), "nothing is known to be there");
    let engine = world.engine(1, &register(CHUNK, 1));
    let name = name(&world, engine, 1);
    let chunk = Chunk { bytes: CHUNK, sum: 1, tokens: 32, end: 32 };
    let found = Found { offset: 0, name, parent: None, chunk };
    let last = Some(chunk.record_bytes());
    world.step(Input::Disk(DiskInput::Found { segment: 1, chunks: vec![found], last }));
    world.step(Input::Tick);
    assert_eq!(world.scrubs.len(), 1, "now it is, and no hour has passed");
}
