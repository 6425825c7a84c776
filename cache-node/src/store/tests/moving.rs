//! Fetches and saves: what they hold, for how long, and who may ask.

use larder_protocol::code::{ErrorCode, RefusedCode};
use larder_protocol::message::{Attach, ErrorAnswer, Leased, Moved, Save};

use super::*;

const CHUNK: u64 = 128 << 10;
const WORKER: ConnectionId = ConnectionId(3);

/// A full store, and a lease of engine 1 on its first three chunks.
fn leased() -> (World, ConnectionId, Leased) {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    for batch in 0..4 {
        world.store_all(engine, batch * 8..batch * 8 + 8);
    }
    let lease = world.lease(engine, 0..3);
    (world, engine, lease)
}

fn fetch(lease: LeaseId, first: u32, blocks: &[u32]) -> Fetch {
    Fetch { id: 21, lease, first, skip: 0, blocks: blocks.to_vec(), after: None }
}

/// Asks for it and gives back the job's number.
fn begin(world: &mut World, message: impl Into<ToNode>) -> JobId {
    world.say(WORKER, message);
    match world.device.last() {
        Some(DeviceOp::Fetch { job, .. } | DeviceOp::Save { job, .. }) => *job,
        other => panic!("{other:?}, {:?}", world.last(WORKER)),
    }
}

fn end(world: &mut World, job: JobId, is_quiet: bool) {
    let result = if is_quiet { Ok(()) } else { Err("lost".to_owned()) };
    world.step(Input::Device(DeviceInput::Ended { job, result, is_quiet }));
}

fn flood(world: &mut World) {
    let other = world.engine(7, &register(CHUNK, 9));
    for batch in 100..106 {
        world.store_all(other, batch * 8..batch * 8 + 8);
    }
}

fn still_readable(world: &World, lease: &Leased) -> bool {
    let mut chunks = (0..).zip(lease.slots.iter().zip(&lease.generations));
    chunks.all(|(number, (slot, generation))| {
        world.read(*slot, *generation).is_some_and(|bytes| bytes.content == number)
    })
}

#[test]
fn a_fetch_is_given_the_places_of_its_chunks() {
    let (mut world, _, lease) = leased();
    let job = begin(&mut world, fetch(lease.lease, 1, &[5, 9]));
    let offset = |index: usize| world.store.arena.offset(lease.slots[index]);
    let expected = DeviceOp::Fetch {
        job,
        lease: lease.lease,
        connection: WORKER,
        places: vec![offset(1), offset(2)],
        pages: Pages { skip: 0, blocks: vec![5, 9], after: None },
    };
    assert_eq!(world.device.last(), Some(&expected));
    world.step(Input::Device(DeviceInput::Begun { job, event: 4 }));
    assert_eq!(world.last(WORKER), &larder_protocol::message::Moving { id: 21, event: 4 }.into());
    end(&mut world, job, true);
    assert_eq!(world.last(WORKER), &Moved { id: 21, ok: true, quiet: true, message: None }.into());
}

#[test]
fn a_fetch_holds_its_chunks_past_expiry_and_release() {
    let (mut world, engine, lease) = leased();
    let job = begin(&mut world, fetch(lease.lease, 0, &[1]));
    world.release(engine, lease.lease);
    world.later(3600);
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    end(&mut world, job, true);
    assert_eq!(world.store.stats().pinned_bytes, 0);
}

#[test]
fn a_fetch_holds_its_chunks_though_its_engine_is_dead() {
    let (mut world, engine, lease) = leased();
    let job = begin(&mut world, fetch(lease.lease, 0, &[1]));
    for connection in [engine, WORKER] {
        world.step(Input::Closed { connection });
        world.step(Input::ProcessDead { connection });
    }
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    assert_eq!(world.store.stats().orphaned_leases, 1);
    end(&mut world, job, true);
    let stats = world.store.stats();
    assert_eq!((stats.pinned_bytes, stats.leases, stats.orphaned_leases), (0, 0, 0));
    assert_eq!(world.store.sessions.len(), 1, "the dead one is buried");
}

/// Where nobody can say that nothing moves any more, the chunks stay for good: no other key's bytes may come there.
#[test]
fn what_may_still_move_keeps_its_chunks() {
    let (mut world, engine, lease) = leased();
    let job = begin(&mut world, fetch(lease.lease, 0, &[1]));
    end(&mut world, job, false);
    let said = Moved { id: 21, ok: false, quiet: false, message: Some("lost".into()) };
    assert_eq!(world.last(WORKER), &said.into());
    world.release(engine, lease.lease);
    world.later(3600);
    flood(&mut world);
    assert!(still_readable(&world, &lease));
    assert_eq!(world.store.stats().counts.stuck_jobs, 1);
    // They are not lost: others are leased them.
    let other = world.engine(2, &register(CHUNK, 1));
    assert_eq!(world.lease(other, 0..3).slots, lease.slots);
}

#[test]
fn a_chunk_found_damaged_meanwhile_fails_the_fetch() {
    let (mut world, engine, lease) = leased();
    let job = begin(&mut world, fetch(lease.lease, 0, &[1]));
    world.slab.get_mut(&world.store.arena.offset(lease.slots[0])).unwrap().damaged = true;
    assert!(matches!(world.lookup(engine, 0..1), ToEngine::Miss(_)));
    end(&mut world, job, true);
    assert!(matches!(world.last(WORKER), ToEngine::Moved(Moved { ok: false, quiet: true, .. })));
    world.say(WORKER, fetch(lease.lease, 0, &[1]));
    assert!(matches!(world.last(WORKER), ToEngine::ErrorAnswer(_)), "nor does a new one begin");
}

#[test]
fn only_a_lease_of_its_own_session_that_has_not_ended() {
    let (mut world, engine, lease) = leased();
    world.engine(2, &register(CHUNK, 1));
    let no_lease = |world: &World, connection| {
        matches!(world.last(connection), ToEngine::ErrorAnswer(ErrorAnswer { code: ErrorCode::NoLease, .. }))
    };
    world.say(ConnectionId(5), fetch(lease.lease, 0, &[1]));
    assert!(no_lease(&world, ConnectionId(5)));
    world.say(WORKER, fetch(lease.lease, 3, &[1]));
    assert!(no_lease(&world, WORKER));
    world.release(engine, lease.lease);
    world.say(WORKER, fetch(lease.lease, 0, &[1]));
    assert!(no_lease(&world, WORKER));
    assert!(world.device.is_empty());
    world.say(engine, fetch(lease.lease, 0, &[1]));
    assert!(world.closed.contains(&engine), "a scheduler has no pages");
}

#[test]
fn a_region_slot_is_saved_to_or_committed_and_not_both() {
    let (mut world, engine, _) = leased();
    let save =
        |slots: &[u32]| Save { id: 30, region_slots: slots.to_vec(), blocks: slots.to_vec(), after: None };
    let job = begin(&mut world, save(&[0, 2]));
    assert!(matches!(
        world.device.last(),
        Some(DeviceOp::Save { places, .. }) if *places == [0, 2 * CHUNK]
    ));
    let bad = |world: &World, connection| {
        let wrong = world.last(connection);
        matches!(wrong, ToEngine::ErrorAnswer(ErrorAnswer { code: ErrorCode::BadRegionSlot, .. }))
    };
    world.commit(engine, 50..51, None);
    assert!(bad(&world, engine));
    end(&mut world, job, true);
    world.commit(engine, 50..51, None);
    world.say(WORKER, save(&[0]));
    assert!(bad(&world, WORKER));
    world.work_all();
    let job = begin(&mut world, save(&[0]));
    // What may still write there never becomes a chunk.
    end(&mut world, job, false);
    world.commit(engine, 51..52, None);
    assert!(bad(&world, engine));
}

pub(super) fn attach() -> Attach {
    Attach {
        id: 40,
        device: larder_protocol::DeviceId(1),
        order: larder_protocol::code::PageOrder::LayerFirst,
        blocks: 1,
        layers: Vec::new(),
        part_bytes: Vec::new(),
        part_offsets: Vec::new(),
        part_pieces: Vec::new(),
        handles: Vec::new(),
        piece_bytes: Vec::new(),
        events: Vec::new(),
    }
}

/// A staged lease on three chunks, whose engine's pages are open or not.
fn staged(pages: bool) -> (World, ConnectionId, LeaseId) {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    if pages {
        world.say(WORKER, attach());
    }
    let request = |tag| larder_protocol::control::StageRequest {
        tag: Some(Tag(tag)),
        chain: (0..4).map(ChainPoint).collect(),
        run_bytes: 128,
        prompt_bytes: 512,
        engine: Some("e1".into()),
        deadline_ms: None,
        max_bytes: None,
        tenant: None,
    };
    for tag in [9, 10] {
        let fresh = world.fresh();
        world.step(Input::Stage { ticket: Ticket(1), request: request(tag), fresh });
        world.work_all();
        if tag == 9 {
            world.commit(engine, 0..3, Some(Tag(9)));
            world.work_all();
        }
    }
    let (_, answer) = world.answers.last().unwrap();
    let lease = answer.lease.expect("it is staged");
    (world, engine, lease)
}

#[test]
fn a_staged_lease_goes_on_to_the_gpus_of_an_engine_whose_pages_are_open() {
    let (world, _, lease) = staged(true);
    let chunks = &world.store.leases[&lease].chunks;
    let expected = DeviceOp::Land {
        lease,
        session: world.session(WORKER),
        needed_by: world.now + Duration::from_millis(75),
        places: chunks.iter().map(|pinned| world.store.arena.offset(pinned.slot)).collect(),
    };
    assert_eq!(world.device.last(), Some(&expected));
    assert!(staged(false).0.device.is_empty());
}

/// What brings them to a GPU reads them: nothing else may come there before it has ended.
#[test]
fn a_lease_holds_its_chunks_while_they_are_brought_to_a_gpu() {
    for died in [false, true] {
        let (mut world, engine, lease) = staged(true);
        if died {
            for connection in [engine, WORKER] {
                world.step(Input::Closed { connection });
                world.step(Input::ProcessDead { connection });
            }
        } else {
            world.release(engine, lease);
            world.later(3600);
        }
        assert!(world.device.contains(&DeviceOp::Unland { lease }));
        assert!(world.store.stats().pinned_bytes > 0);
        world.step(Input::Device(DeviceInput::Landed { lease }));
        let stats = world.store.stats();
        assert_eq!((stats.pinned_bytes, stats.leases), (0, 0));
        let told = world.device.iter().filter(|op| matches!(op, DeviceOp::Unland { .. })).count();
        assert_eq!(told, 1);
    }
    let (mut world, engine, lease) = staged(true);
    world.step(Input::Device(DeviceInput::Landed { lease }));
    assert_eq!(world.store.stats().leases, 1, "what has landed waits for its load");
    world.release(engine, lease);
    assert_eq!(world.device.last(), Some(&DeviceOp::Unland { lease }));
}

#[test]
fn pages_are_closed_with_their_connection() {
    let (mut world, engine, _) = leased();
    world.say(WORKER, attach());
    assert!(matches!(world.device.last(), Some(DeviceOp::Attach { rank: (_, 0), part: (1, CHUNK), .. })));
    let refused = Err((RefusedCode::NoGpu, "none".to_owned()));
    world.step(Input::Device(DeviceInput::Attached { connection: WORKER, id: 40, result: refused }));
    assert!(matches!(world.last(WORKER), ToEngine::Refused(_)));
    world.step(Input::Closed { connection: engine });
    assert_eq!(world.device.last(), Some(&DeviceOp::Detach { connection: WORKER }));
}
