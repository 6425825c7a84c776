//! Explicit pins and quotas: what they keep, and what they cost whom.

use larder_protocol::PinId;
use larder_protocol::control::{
    PinAnswer, PinRequest, QuotaRequest, ReleaseRequest, StageReason, StageRequest, TenantQuota,
};

use super::*;

const CHUNK: u64 = 128 << 10;

/// A prompt of one run a chunk that begins at `first`, and one run more: the estimate of how many chunks a chain names is
/// a little low.
fn chain(first: u64, runs: u64) -> Vec<ChainPoint> {
    (0..=runs).map(|run| ChainPoint(first * 1000 + run)).collect()
}

fn stage(world: &mut World, tenant: Option<&str>, first: u64, runs: u64) {
    let request = StageRequest {
        tag: Some(Tag(u128::from(first))),
        chain: chain(first, runs),
        run_bytes: 128,
        prompt_bytes: (runs + 1) * 128,
        engine: Some("e1".into()),
        deadline_ms: None,
        max_bytes: Some(0),
        tenant: tenant.map(str::to_owned),
    };
    let fresh = world.fresh();
    world.step(Input::Stage { ticket: Ticket(1), request, fresh });
}

/// Stores a prompt of `runs` chunks for a tenant, so that the node can stage it.
fn store(
    world: &mut World,
    engine: ConnectionId,
    tenant: Option<&str>,
    first: u64,
    runs: u64,
) -> Vec<Verdict> {
    stage(world, tenant, first, runs);
    world.commit(engine, first..first + runs, Some(Tag(u128::from(first))));
    world.work_all();
    match world.last(engine) {
        ToEngine::Committed(committed) => committed.results.0.clone(),
        other => panic!("{other:?}"),
    }
}

fn pin(world: &mut World, id: u128, first: u64, runs: u64, max_bytes: Option<u64>) -> PinAnswer {
    let request = PinRequest {
        chain: chain(first, runs),
        run_bytes: 128,
        prompt_bytes: (runs + 1) * 128,
        engine: Some("e1".into()),
        ttl_ms: 60_000,
        max_bytes,
    };
    world.step(Input::Pin { ticket: Ticket(1), request, fresh: PinId(id) });
    world.pinned.pop().unwrap()
}

fn release(world: &mut World, request: ReleaseRequest) -> bool {
    world.step(Input::GiveBack { ticket: Ticket(1), request });
    world.released.pop().unwrap()
}

fn set_quota(world: &mut World, tenant: &str, max_bytes: Option<u64>) -> u64 {
    let request = QuotaRequest { tenant: tenant.into(), max_bytes };
    world.step(Input::SetQuota { ticket: Ticket(1), request });
    world.quotas.pop().unwrap().unwrap().evicted_chunks
}

/// A world with one engine, and the chunks 0..4 of a prompt that can be staged.
fn world() -> (World, ConnectionId) {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    assert_eq!(store(&mut world, engine, None, 0, 4), [Verdict::Accepted; 4]);
    (world, engine)
}

/// Stores more than the slab has room for, several times over.
fn flood(world: &mut World, engine: ConnectionId) {
    (1..20).for_each(|prompt| drop(world.store_all(engine, prompt * 1000..prompt * 1000 + 8)));
}

#[test]
fn what_is_pinned_stays_until_its_time_is_over() {
    let (mut world, engine) = world();
    let answer = pin(&mut world, 7, 0, 4, None);
    assert_eq!((answer.pin, answer.chunks, answer.tokens), (Some(PinId(7)), 4, 128));
    assert_eq!((answer.bytes, answer.expires_ms, answer.reason), (4 * CHUNK, 60_000, StageReason::Staged));
    flood(&mut world, engine);
    assert_eq!(world.lease(engine, 0..4).slots.len(), 4);
    let stats = world.store.stats();
    assert_eq!((stats.pins, stats.pin_bytes, stats.counts.pinned_chunks), (1, 4 * CHUNK, 4));
    world.later(61);
    assert_eq!((world.store.stats().pins, world.store.stats().counts.expired_pins), (0, 1));
    // Its uses have faded, and nothing else keeps it.
    world.later(3600);
    flood(&mut world, engine);
    assert!(matches!(world.lookup(engine, 0..4), ToEngine::Miss(_)));
    assert_eq!(world.store.stats().pinned_bytes, 0);
}

/// The control: without a pin the flood takes them.
#[test]
fn what_is_not_pinned_goes() {
    let (mut world, engine) = world();
    flood(&mut world, engine);
    assert!(matches!(world.lookup(engine, 0..4), ToEngine::Miss(_)));
}

#[test]
fn pins_are_cut_at_their_budget_and_say_why_they_keep_nothing() {
    let (mut world, engine) = world();
    let cut = pin(&mut world, 1, 0, 4, Some(2 * CHUNK));
    assert_eq!((cut.chunks, cut.reason), (2, StageReason::Cut));
    // A namespace may keep eight chunks; what a second pin shares with the first is kept once.
    store(&mut world, engine, None, 1000, 8);
    let more = pin(&mut world, 2, 1000, 8, None);
    assert_eq!((more.chunks, more.reason), (6, StageReason::Cut));
    assert_eq!(pin(&mut world, 3, 0, 4, None).chunks, 2);
    let stats = world.store.stats();
    assert_eq!((stats.pins, stats.pin_bytes, stats.pinned_bytes), (3, MIB, MIB));
    store(&mut world, engine, None, 2000, 2);
    let full = pin(&mut world, 4, 2000, 2, None);
    assert_eq!((full.pin, full.reason), (None, StageReason::Busy));
    assert_eq!(pin(&mut world, 5, 3000, 2, None).reason, StageReason::NoRecipe);
    let listed = world.store.pins(world.now);
    assert_eq!((listed.pins.len(), listed.bytes, listed.namespace_max_bytes), (3, MIB, MIB));
}

#[test]
fn pins_and_unstarted_leases_are_given_back() {
    let (mut world, engine) = world();
    pin(&mut world, 7, 0, 4, None);
    let by_pin = ReleaseRequest { lease: None, pin: Some(PinId(7)) };
    assert!(release(&mut world, by_pin));
    assert!(!release(&mut world, by_pin));
    let lease = world.lease(engine, 0..4).lease;
    let by_lease = ReleaseRequest { lease: Some(lease), pin: None };
    world.load(engine, lease, 4);
    assert!(release(&mut world, by_lease));
    assert!(!release(&mut world, by_lease), "it ends already");
    assert!(world.store.stats().pinned_bytes > 0, "a begun load keeps its slots");
    world.complete(engine, lease);
    assert_eq!((world.store.stats().pinned_bytes, world.store.stats().leases), (0, 0));
}

#[test]
fn forgetting_everything_ends_pins() {
    let (mut world, _) = world();
    pin(&mut world, 7, 0, 4, None);
    world.step(Input::Clear { ticket: Ticket(1) });
    assert_eq!(world.cleared.pop(), Some((4, 0)));
}

#[test]
fn a_pinned_chunk_that_is_damaged_is_quarantined_and_missed() {
    let (mut world, engine) = world();
    pin(&mut world, 7, 0, 4, None);
    world.step(Input::Damage {
        ticket: Ticket(1),
        damage: Damage::Flip { key: Some(key(1)), nth: 0, byte: 0, bit: 0 },
    });
    assert_eq!(world.lease(engine, 0..4).slots.len(), 1);
    assert!(release(&mut world, ReleaseRequest { lease: None, pin: Some(PinId(7)) }));
}

#[test]
fn a_tenant_at_its_quota_evicts_its_own_first() {
    let mut world = World::new(settings());
    let engine = world.engine(1, &register(CHUNK, 1));
    store(&mut world, engine, Some("other"), 0, 4);
    set_quota(&mut world, "greedy", Some(6 * CHUNK));
    for prompt in 1..30 {
        let verdicts = store(&mut world, engine, Some("greedy"), prompt * 1000, 3);
        assert_eq!(verdicts, [Verdict::Accepted; 3]);
    }
    assert_eq!(world.lease(engine, 0..4).slots.len(), 4, "the other's are colder by far, and stay");
    let quotas = world.store.quotas();
    let greedy = TenantQuota { tenant: "greedy".into(), max_bytes: Some(6 * CHUNK), held_bytes: 6 * CHUNK };
    let other = TenantQuota { tenant: "other".into(), max_bytes: None, held_bytes: 4 * CHUNK };
    assert_eq!(quotas.tenants, [greedy, other]);
    let counts = world.store.stats().counts;
    assert_eq!((counts.quota_evicted_chunks, counts.quota_refused_chunks), (27 * 3, 0));
    assert_eq!(set_quota(&mut world, "greedy", Some(2 * CHUNK)), 4, "a smaller quota is kept to at once");
    set_quota(&mut world, "greedy", None);
    (1..20).for_each(|prompt| drop(store(&mut world, engine, Some("greedy"), prompt * 1000, 8)));
    world.later(31);
    assert!(world.store.quotas().tenants[0].held_bytes > 20 * CHUNK, "without a quota it takes what it gets");
}

#[test]
fn a_tenant_whose_chunks_are_all_in_use_is_refused() {
    let mut world = World::new(Settings { tenant_bytes_max: Some(4 * CHUNK), ..settings() });
    let engine = world.engine(1, &register(CHUNK, 1));
    // A prompt longer than the quota: its beginning is kept.
    let verdicts = store(&mut world, engine, Some("a"), 0, 6);
    let (kept, refused) = ([Verdict::Accepted; 4], [Verdict::Refused; 2]);
    assert_eq!(verdicts, [kept.as_slice(), &refused].concat());
    let lease = world.lease(engine, 0..4).lease;
    assert_eq!(store(&mut world, engine, Some("a"), 1000, 1), [Verdict::Refused]);
    assert_eq!(store(&mut world, engine, Some("b"), 2000, 1), [Verdict::Accepted], "another has its own");
    assert_eq!(set_quota(&mut world, "a", Some(CHUNK)), 0, "what is in use stays");
    world.release(engine, lease);
    assert_eq!(store(&mut world, engine, Some("a"), 3000, 1), [Verdict::Accepted]);
    assert_eq!(world.store.quotas().tenants[0].held_bytes, CHUNK);
    assert_eq!(world.store.stats().counts.quota_refused_chunks, 3);
}

#[test]
fn too_many_tenants_are_nobody() {
    let (mut world, engine) = world();
    for number in 0..TENANTS_MAX {
        set_quota(&mut world, &format!("t{number}"), Some(0));
    }
    let request = QuotaRequest { tenant: "one more".into(), max_bytes: Some(0) };
    world.step(Input::SetQuota { ticket: Ticket(1), request });
    assert_eq!(world.quotas.pop(), Some(None));
    assert_eq!(store(&mut world, engine, Some("one more"), 5000, 1), [Verdict::Accepted]);
    // One that has no quota of its own and holds nothing makes room for another.
    set_quota(&mut world, "t7", None);
    set_quota(&mut world, "one more", Some(1));
    assert_eq!(world.store.stats().tenants, TENANTS_MAX as u64);
}
