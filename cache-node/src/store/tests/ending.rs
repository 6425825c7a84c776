//! Who frees what and when: expiry, release, lost connections, dead processes.

use super::*;

const CHUNK: u64 = 128 << 10;

/// A full store whose first three chunks are leased by engine 1; the rest can be evicted.
fn leased() -> (World, ConnectionId, larder_protocol::message::Leased) {
    leased_watched(true)
}

fn leased_watched(watched: bool) -> (World, ConnectionId, larder_protocol::message::Leased) {
    let mut world = World::new(settings());
    let engine = world.engine_watched(1, &register(CHUNK, 1), watched);
    for batch in 0..4 {
        world.store_all(engine, batch * 8..batch * 8 + 8);
    }
    let lease = world.lease(engine, 0..3);
    (world, engine, lease)
}

/// Another engine stores so much that everything not pinned is evicted.
fn flood(world: &mut World) {
    let other = world.engine(7, &register(CHUNK, 9));
    for batch in 100..106 {
        world.store_all(other, batch * 8..batch * 8 + 8);
    }
}

fn still_readable(world: &World, lease: &larder_protocol::message::Leased) -> bool {
    let mut chunks = (0..).zip(lease.slots.iter().zip(&lease.generations));
    chunks.all(|(number, (slot, generation))| {
        world.read(*slot, *generation).is_some_and(|bytes| bytes.content == number)
    })
}

#[test]
fn an_unstarted_lease_holds_until_it_expires() {
    let (mut world, _, lease) = leased();
    world.later(29);
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    world.later(1);
    assert_eq!(world.store.stats().pinned_bytes, 0);
}

#[test]
fn an_expired_lease_cannot_be_started() {
    let (mut world, engine, lease) = leased();
    world.now += Duration::from_secs(30);
    world.load(engine, lease.lease, 3);
    assert!(matches!(world.last(engine), ToEngine::ErrorAnswer(_)), "also before the tick that ends it");
}

/// A client stopped in the middle of a copy, past the expiry, never reads another key's bytes.
#[test]
fn a_started_load_keeps_its_slots_past_expiry_and_release() {
    let (mut world, engine, lease) = leased();
    world.load(engine, lease.lease, 3);
    world.later(3600);
    world.release(engine, lease.lease);
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    world.complete(engine, lease.lease);
    assert!(matches!(world.last(engine), ToEngine::Okay(_)));
    assert_eq!(world.store.stats().pinned_bytes, 0);
    world.complete(engine, lease.lease);
    assert!(matches!(world.last(engine), ToEngine::ErrorAnswer(_)), "each load completes once");
}

#[test]
fn several_loads_of_one_lease_each_hold_it() {
    let (mut world, engine, lease) = leased();
    world.load(engine, lease.lease, 1);
    world.load(engine, lease.lease, 3);
    world.release(engine, lease.lease);
    world.complete(engine, lease.lease);
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    world.complete(engine, lease.lease);
    assert_eq!(world.store.stats().leases, 0);
}

#[test]
fn a_lost_connection_ends_unstarted_leases_at_once() {
    let (mut world, engine, _) = leased();
    world.step(Input::Closed { connection: engine });
    assert_eq!((world.store.stats().pinned_bytes, world.store.stats().sessions), (0, 0));
    assert!(world.closed.contains(&ConnectionId(3)), "the worker's connection goes too");
    assert!(world.forgotten.contains(&engine) && world.forgotten.contains(&ConnectionId(3)));
}

#[test]
fn a_lost_connection_keeps_started_loads_until_the_process_is_dead() {
    let (mut world, engine, lease) = leased();
    world.load(engine, lease.lease, 3);
    world.step(Input::Closed { connection: engine });
    world.later(3600);
    flood(&mut world);
    assert!(still_readable(&world, &lease), "its process may still be copying");
    assert_eq!(world.store.stats().orphaned_leases, 1);
    world.step(Input::ProcessDead { connection: ConnectionId(3) });
    assert_eq!((world.store.stats().pinned_bytes, world.store.stats().orphaned_leases), (0, 0));
}

#[test]
fn every_mapped_process_must_be_dead() {
    let mut world = World::new(settings());
    let two = Register { world: 2, ..register(CHUNK / 2, 1) };
    let engine = world.engine(1, &two);
    let second = ConnectionId(50);
    world.step(Input::Accepted { connection: second, watched: true });
    let hello = Hello {
        versions: vec![1],
        role: Role::Worker,
        rank: 1,
        engine: "e1".into(),
        endpoint: None,
        software: None,
    };
    world.say(second, hello);
    world.say(second, two);
    world.store_all(engine, 0..3);
    let lease = world.lease(engine, 0..3);
    world.load(engine, lease.lease, 3);
    // One worker dies: the session ends, but the other rank may be in the middle of its part.
    world.step(Input::ProcessDead { connection: ConnectionId(3) });
    world.step(Input::Closed { connection: ConnectionId(3) });
    assert_eq!(world.store.stats().orphaned_leases, 1);
    world.step(Input::ProcessDead { connection: second });
    assert_eq!(world.store.stats().orphaned_leases, 0);
}

#[test]
fn a_process_nobody_watches_keeps_its_slots_for_good() {
    let (mut world, engine, lease) = leased_watched(false);
    world.load(engine, lease.lease, 3);
    world.step(Input::Closed { connection: engine });
    world.later(1_000_000);
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    assert_eq!(world.store.stats().orphaned_leases, 1);
}

#[test]
fn an_engine_lost_while_its_chunks_are_verified_gets_nothing() {
    let (mut world, engine, lease) = leased();
    world.release(engine, lease.lease);
    let lookup = Lookup {
        id: 5,
        keys: keys(0..3),
        end_tokens: vec![1, 2, 3],
        request: None,
        tag: None,
        prompt_tokens: None,
    };
    world.say(engine, lookup);
    world.step(Input::Closed { connection: engine });
    assert!(world.store.stats().pinned_bytes > 0, "pinned while being read");
    world.work_all();
    assert_eq!((world.store.stats().pinned_bytes, world.store.stats().leases), (0, 0));
}

#[test]
fn an_engine_lost_while_its_chunks_are_copied_leaves_them_whole() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    world.commit(engine, 0..3, None);
    world.step(Input::Closed { connection: engine });
    world.work_all();
    let again = world.engine(2, &register(CHUNK, 1));
    assert_eq!(world.lease(again, 0..3).slots.len(), 3, "a commit says that the chunks are whole");
}

#[test]
fn a_restarted_engine_may_come_back_under_the_same_endpoint() {
    let (mut world, engine, lease) = leased();
    world.load(engine, lease.lease, 3);
    world.step(Input::Closed { connection: engine });
    let again = world.engine(1, &register(CHUNK, 1));
    assert_eq!(
        world.lease(again, 0..3).slots,
        lease.slots,
        "also while the old run's load is not known over"
    );
}
